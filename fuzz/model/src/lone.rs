//! A cell for one thread, where the device model's traits ask for `Send + Sync`.

use std::cell::{RefCell, RefMut};

/// A `RefCell` that may be named by types which have to be `Sync`, and that only the thread that made it can open.
///
/// A machine under the fuzzer lives in one thread; a mutex would only cost. Opening one from elsewhere is a panic, not
/// a race.
#[derive(Debug)]
pub struct Lone<T> {
    owner: usize,
    cell: RefCell<T>,
}

// SAFETY: `open` refuses every thread but the owner, so the cell is never reached from two threads; dropping happens
// with exclusive access.
unsafe impl<T> Sync for Lone<T> {}
// SAFETY: as above: on another thread the content cannot be reached, and what the fuzzer keeps in these cells has no
// thread-bound destructor.
unsafe impl<T> Send for Lone<T> {}

thread_local! {
    static MARK: u8 = const { 0 };
}

/// A number that differs between threads that live at the same time.
#[inline]
fn here() -> usize {
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

impl<T> Lone<T> {
    /// A cell of the calling thread.
    pub fn new(value: T) -> Self {
        Self { owner: here(), cell: RefCell::new(value) }
    }

    /// The content.
    ///
    /// # Panics
    /// On another thread, and where the content is in use already.
    #[inline]
    pub fn open(&self) -> RefMut<'_, T> {
        assert_eq!(self.owner, here(), "a machine under the fuzzer belongs to one thread");
        self.cell.borrow_mut()
    }
}

impl<T: Default> Default for Lone<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
