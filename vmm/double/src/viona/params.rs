//! Parameters, as packed name-value lists.

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::bhyve::abi::*;
use zvmm::hypervisor::bhyve::nvlist::{self, Value};

use super::node::Attached;
use super::rules;
use crate::bhyve::user::{copy_in, copy_out, get, put};
use crate::node::Call;

/// The longest room before a header. (The kernel's is a tunable of its own, which nothing may depend on.)
const MOST_PAD: u16 = 256;

/// The parameters of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    copies: bool,
    pad: u16,
}

impl Params {
    /// As the kernel begins.
    pub const FIRST: Self = Self { copies: true, pad: 0 };

    /// Whether sent frames are copied, and the room before them.
    pub fn now(self) -> (bool, u16) {
        (self.copies, self.pad)
    }

    /// Takes over what a list says; all that is wrong in it, by key.
    fn take(&mut self, given: &[(String, Value)]) -> Vec<(String, Value)> {
        let mut wrong = Vec::new();
        for (key, value) in given {
            let why = match (key.as_str(), value) {
                ("tx_copy_data", Value::Boolean(copies)) => {
                    self.copies = *copies;
                    continue;
                }
                ("tx_header_pad", Value::Uint16(pad)) if *pad <= MOST_PAD => {
                    self.pad = *pad;
                    continue;
                }
                ("tx_header_pad", Value::Uint16(_)) => "value out of range",
                ("tx_copy_data" | "tx_header_pad", _) => "invalid type",
                _ => "unknown key",
            };
            wrong.push((key.clone(), Value::Text(why.to_owned())));
        }
        wrong
    }
}

impl Attached {
    pub(super) fn params(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut asked: vioc_get_params = get(bytes);
        let Params { copies, pad } = self.params;
        let packed = nvlist::pack(&[("tx_copy_data", Value::Boolean(copies)), ("tx_header_pad", Value::Uint16(pad))]);
        let fits = packed.len() <= asked.vgp_param_sz;
        asked.vgp_param_sz = packed.len();
        put(bytes, &asked);
        if !fits {
            return Err(Errno::E2BIG);
        }
        copy_out(call, &packed, asked.vgp_param).map(|()| 0)
    }

    pub(super) fn set_params(&mut self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut given: vioc_set_params = get(bytes);
        let errors = std::mem::replace(&mut given.vsp_error_sz, 0);
        put(bytes, &given);
        let refuse =
            |errno, why: &str| Err(call.refuse(&rules::PARAMS_LIST, errno, format!("{}: {why}", self.taken.link)));
        match given.vsp_param_sz {
            0 => return refuse(Errno::EINVAL, "nothing is named"),
            len if len > VIONA_MAX_PARAM_NVLIST_SZ => return refuse(Errno::E2BIG, "it is too long"),
            _ => {}
        }
        let mut packed = vec![0; given.vsp_param_sz];
        copy_in(call, given.vsp_param, &mut packed)?;
        let list = match nvlist::unpack(&packed) {
            Ok(list) => list,
            Err(error) => return refuse(Errno::EINVAL, &error.to_string()),
        };
        if self.indices().any(|index| self.ring(index).phase != super::ring::Phase::Reset) {
            call.note(&rules::PARAMS_STILL, self.taken.link.clone());
        }
        let mut params = self.params;
        let wrong = params.take(&list);
        if wrong.is_empty() {
            self.params = params;
            return Ok(0);
        }
        // All or nothing: and which of them is wrong.
        let wrong: Vec<(&str, Value)> = wrong.iter().map(|(key, why)| (key.as_str(), why.clone())).collect();
        let packed = nvlist::pack(&wrong);
        given.vsp_error_sz = packed.len();
        put(bytes, &given);
        if packed.len() > errors {
            return Err(Errno::E2BIG);
        }
        copy_out(call, &packed, given.vsp_error)?;
        Err(Errno::EINVAL)
    }
}
