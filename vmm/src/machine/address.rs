//! The Ethernet address of a guest's network interface.

use crate::config::{Mac, NetConfig};

use super::StartError;

/// The address that is configured, or else the one that follows from the link's own.
///
/// # Errors
/// One line that names the interface, where the host does not tell the link's.
pub fn of(config: &NetConfig) -> Result<Mac, StartError> {
    if let Some(mac) = config.mac {
        return Ok(mac);
    }
    let link = &config.link_name();
    let own = of_link(link).map_err(|why| {
        StartError::Config(format!("{}: no mac is given, and that of {link} cannot be read: {why}", config.id))
    })?;
    Ok(if config.macvtap.is_some() { own } else { own.of_other_end() })
}

/// What sysfs says of an interface (Documentation/ABI/testing/sysfs-class-net), which only Linux has, as only Linux has the
/// TAP devices that interfaces are. The name was checked: it holds no '/'.
fn of_link(link: &str) -> Result<Mac, String> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{link}/address"));
    let text = text.map_err(|error| crate::config::system_text(&error))?;
    text.trim_end().parse().map_err(|error: crate::config::BadValue| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_given_is_taken_and_another_is_never_the_links_own() {
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(of(&NetConfig { mac: Some(mac), ..NetConfig::new("none") }).ok(), Some(mac));
        // Every Linux has this interface; its address is zero.
        assert_eq!(
            of(&NetConfig { id: "net0".to_owned(), ..NetConfig::new("lo") }).ok(),
            Some(Mac([4, 0, 0, 0, 0, 0]))
        );
        let macvtap = NetConfig { macvtap: Some("lo".to_owned()), ..NetConfig::new("") };
        assert_eq!(of(&macvtap).ok(), Some(Mac([0; 6])), "which is the guest's end");
        let error = of(&NetConfig { id: "net0".to_owned(), ..NetConfig::new("none-such") }).unwrap_err().to_string();
        let line = "net0: no mac is given, and that of none-such cannot be read: No such file or directory";
        assert_eq!(error, line);
    }

    #[test]
    fn the_other_end_has_an_address_of_one_station_and_stays_as_local_as_the_link() {
        for first in [0x00, 0x02, 0x52, 0xfe] {
            let own = Mac([first, 1, 2, 3, 4, 5]);
            let other = own.of_other_end();
            assert!(other != own && !other.is_multicast() && other.0[0] & 2 == first & 2, "{other}");
            assert_eq!(other.of_other_end(), own);
        }
    }
}
