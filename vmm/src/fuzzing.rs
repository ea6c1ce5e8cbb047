//! What the fuzz targets reach of this crate besides what everybody may use. Not an interface: it changes at will.

pub use crate::cli::guest_arguments;

/// The control socket: a client's conversation, and who carries out what comes of it.
pub mod qmp {
    pub use crate::control::orders::Orders;
    pub use crate::control::qmp::query::Query;
    pub use crate::control::qmp::{
        ErrorClass, Id, MAX_MESSAGE, Order, Outcome, Request, Session, Step, event, failure, success,
    };
}

/// What `explain` shows of a command line.
pub fn machine_table(translation: &crate::config::Translation) -> String {
    crate::cli::machine_table(translation)
}

/// What the process would write on stderr about `what`.
pub fn said(what: impl std::fmt::Display) -> String {
    crate::logging::line(what)
}
