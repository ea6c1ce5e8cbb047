//! What a kernel that sends the interrupts of queues is told, as a driver programs vectors and the MSI-X table.

use super::*;

type Told = (u16, Option<u32>);

/// Remembers what it was told.
#[derive(Default)]
struct Heard(Mutex<Vec<Told>>);

impl QueueMessages for Heard {
    fn place(&self, queue: u16, message: Option<MsiMessage>) {
        self.0.lock().unwrap().push((queue, message.map(|message| message.data)));
    }
}

impl Heard {
    fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn a_queues_message_follows_its_vector_the_table_and_both_masks() {
    let heard = Arc::new(Heard::default());
    let mut rig = rig_with(Shape::default(), Some(heard.clone()));
    rig.enable();
    rig.enable_msix();
    let table = rig.bar(1);
    let entry = |rig: &mut Rig, vector: u64, data: u64, masked: u64| {
        rig.store(table + vector * 16, 4, 0xfee0_1000);
        rig.store(table + vector * 16 + 4, 4, 0);
        rig.store(table + vector * 16 + 8, 4, data);
        rig.store(table + vector * 16 + 12, 4, masked);
    };
    entry(&mut rig, 1, 0x41, 0);
    entry(&mut rig, 2, 0x42, 1);
    assert_eq!(heard.take(), [], "no queue has a vector yet");
    assert!(rig.negotiate(VERSION_1));
    rig.set_up_queue(0, 1);
    rig.set_up_queue(1, 2);
    rig.set(field::STATUS, 1, 15);
    assert_eq!(heard.take(), [(0, Some(0x41))]);
    rig.store(table + 2 * 16 + 12, 4, 0);
    assert_eq!(heard.take(), [(1, Some(0x42))]);
    rig.store(table + 16 + 8, 4, 0x61);
    assert_eq!(heard.take(), [(0, Some(0x61))]);
    // To an address that no interrupt comes from there is none to send.
    rig.store(table + 16, 4, 0x1000);
    assert_eq!(heard.take(), [(0, None)]);
    rig.store(table + 16, 4, 0xfee0_0000);
    assert_eq!(heard.take(), [(0, Some(0x61))]);
    let control = rig.capabilities(0x11)[0] + 2;
    rig.config_write(control, 2, 0xc000);
    assert_eq!(heard.take(), [(0, None), (1, None)], "the whole function is masked");
    rig.config_write(control, 2, 0x8000);
    assert_eq!(heard.take(), [(0, Some(0x61)), (1, Some(0x42))]);
    rig.config_write(control, 2, 0);
    assert_eq!(heard.take(), [(0, None), (1, None)], "INTx from here on");
    rig.config_write(control, 2, 0x8000);
    heard.take();
    rig.set(field::STATUS, 1, 0);
    assert_eq!(heard.take(), [(0, None), (1, None)], "a reset takes vectors away");
}

#[test]
fn a_restored_device_says_what_its_queues_interrupt_with() {
    let heard = Arc::new(Heard::default());
    let mut rig = rig_with(Shape::default(), Some(heard.clone()));
    rig.start();
    let table = rig.bar(1);
    for (offset, value) in [(16, 0xfee0_0000), (24, 0x41), (28, 0)] {
        rig.store(table + offset, 4, value);
    }
    let state = rig.function.save();
    let queues: Vec<(u16, QueueState)> = vec![(0, ring(0)), (1, ring(1))];
    let told = heard.take();
    let other = Arc::new(Heard::default());
    let restored = rig_with(Shape::default(), Some(other.clone()));
    restored.function.restore(&state, &queues).unwrap();
    assert_eq!(other.take().last(), told.last());
}
