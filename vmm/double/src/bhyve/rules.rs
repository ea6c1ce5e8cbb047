//! The rules of `/dev/vmmctl` and `/dev/vmm/<name>`.

crate::rules! {
    CTL_EXCL = "bhyve-ctl-excl", "bhyve 1.1", "vmmctl is opened with O_EXCL";
}
