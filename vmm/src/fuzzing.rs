//! What the fuzz targets reach of this crate besides what everybody may use. Not an interface: it changes at will.

pub use crate::cli::guest_arguments;

/// The control socket's conversation.
pub mod qmp {
    pub use crate::control::qmp::{
        ErrorClass, Id, MAX_MESSAGE, Order, Request, Session, Step, event, failure, status, success,
    };
}

/// What the process would write on stderr about `what`.
pub fn said(what: impl std::fmt::Display) -> String {
    crate::logging::line(what)
}
