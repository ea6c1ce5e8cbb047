//! What the fuzz targets reach of this crate besides what everybody may use. Not an interface: it changes at will.

/// What the process would write on stderr about `what`.
pub fn said(what: impl std::fmt::Display) -> String {
    crate::logging::line(what)
}
