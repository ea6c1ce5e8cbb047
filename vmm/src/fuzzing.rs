//! What the fuzz targets reach of this crate besides what everybody may use. Not an interface: it changes at will.

pub use crate::cli::guest_arguments;

/// The control socket's conversation, as far as its target knows the commands: it says of each what it must lead to.
pub mod qmp {
    use serde_json::Value;

    use crate::control::qmp as real;
    use crate::control::{Command, DiskResize, LinkChange};

    pub use real::{ErrorClass, Id, MAX_MESSAGE, event, failure, status, success};

    /// What the target's commands order.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Order {
        Command(Command),
        QueryStatus,
        QueryStats,
        ResizeDisk(DiskResize),
        SetLink(LinkChange),
    }

    /// An order, and the id to answer under.
    #[derive(Debug, PartialEq)]
    pub struct Request {
        pub order: Order,
        pub id: Id,
    }

    /// What a message led to.
    #[derive(Debug, PartialEq)]
    pub enum Step {
        Do(Request),
        Answer(Value),
    }

    /// A client's conversation.
    #[derive(Debug)]
    pub struct Session(real::Session);

    impl Default for Session {
        fn default() -> Self {
            Self(real::Session::fuzzed())
        }
    }

    impl Session {
        /// What a client is told first.
        pub fn greeting() -> Value {
            real::Session::greeting()
        }

        /// Whether the client has negotiated.
        pub fn wants_events(&self) -> bool {
            self.0.wants_events()
        }

        /// Bytes of a message that is not complete yet.
        pub fn buffered_bytes(&self) -> usize {
            self.0.buffered_bytes()
        }

        /// Feeds one byte.
        pub fn byte(&mut self, byte: u8) -> Option<Step> {
            Some(match self.0.byte(byte)? {
                real::Step::Answer(answer) => Step::Answer(answer),
                real::Step::Do(real::Request { order, id }) => Step::Do(Request { order: known(order), id }),
            })
        }
    }

    fn known(order: real::Order) -> Order {
        match order {
            real::Order::Command(command) => Order::Command(command),
            real::Order::QueryStatus => Order::QueryStatus,
            real::Order::QueryStats => Order::QueryStats,
            real::Order::ResizeDisk(resize) => Order::ResizeDisk(resize),
            real::Order::SetLink(change) => Order::SetLink(change),
            other => panic!("a command that the target does not know led to {other:?}"),
        }
    }
}

/// What `explain` shows of a command line.
pub fn machine_table(translation: &crate::config::Translation) -> String {
    crate::cli::machine_table(translation)
}

/// What the process would write on stderr about `what`.
pub fn said(what: impl std::fmt::Display) -> String {
    crate::logging::line(what)
}
