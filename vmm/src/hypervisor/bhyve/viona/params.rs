//! An instance's parameters: how the kernel treats what the guest sends.

use crate::hypervisor::bhyve::error::CallError;
use crate::hypervisor::bhyve::nvlist::{self, Value};
use crate::hypervisor::bhyve::vmfd::VionaFd;
use crate::hypervisor::{HypervisorError, LinkOptions};

/// Sets what the options name, all of it or nothing.
///
/// # Errors
/// One line that says which of them is not possible.
pub fn set(fd: &VionaFd, name: &str, options: &LinkOptions) -> Result<(), HypervisorError> {
    let copies = options.tx_copy_data.map(|copies| ("tx_copy_data", Value::Boolean(copies)));
    let pad = options.tx_header_pad.map(|bytes| ("tx_header_pad", Value::Uint16(bytes)));
    let wanted: Vec<(&str, Value)> = copies.into_iter().chain(pad).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let refused = |(error, details): (CallError, Vec<u8>)| {
        let keys: Vec<&str> = wanted.iter().map(|(key, _)| *key).collect();
        HypervisorError::Unavailable(refusal(name, &keys.join(" and "), error, &details))
    };
    fd.set_params(&nvlist::pack(&wanted)).map_err(refused)?;
    match fd.params().map(|packed| nvlist::unpack(&packed)) {
        Ok(Ok(now)) => log::info!("bhyve: link {name}: {}", list(&now)),
        Ok(Err(error)) => log::warn!("bhyve: link {name}: VNA_IOC_GET_PARAMS: {error}"),
        Err(error) => log::warn!("bhyve: link {name}: {error}"),
    }
    Ok(())
}

fn refusal(name: &str, keys: &str, error: CallError, details: &[u8]) -> String {
    if VionaFd::lacks::<()>(&Err(error)) {
        return format!(
            "link {name}: viona has no {keys} (it lacks {}): use a newer platform, or leave it out",
            error.call
        );
    }
    match nvlist::unpack(details) {
        Ok(why) if !why.is_empty() => format!("link {name}: viona refuses {}", list(&why)),
        _ => format!("link {name}: {keys}: {error}"),
    }
}

/// The pairs as text.
fn list(pairs: &[(String, Value)]) -> String {
    let text = |(key, value): &(String, Value)| match value {
        Value::Boolean(value) => format!("{key}={value}"),
        Value::Uint16(value) => format!("{key}={value}"),
        Value::Text(text) => format!("{key}: {text}"),
        Value::Other(kind) => format!("{key} (of type {kind})"),
    };
    pairs.iter().map(text).collect::<Vec<_>>().join(", ")
}
