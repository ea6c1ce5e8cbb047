//! The table as seccomp(2) programs, one a kind of thread.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::ThreadKind;
use super::policy::{LINES, Line, When};

/// The program of a kind of thread of `process`, with what becomes of a call that is not in the table. A call in another ABI
/// (32-bit, x32) ends the process whatever `refused` is.
///
/// # Errors
/// None for the table as it is.
pub fn program(kind: ThreadKind, refused: SeccompAction, process: u32) -> Result<BpfProgram, BackendError> {
    program_of(LINES.iter().filter(|line| line.is_for(kind)), refused, process)
}

/// As [`program`], of some lines of the table.
pub(super) fn program_of<'a>(
    lines: impl Iterator<Item = &'a Line>,
    refused: SeccompAction,
    process: u32,
) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    // A call without rules passes always: one that passes always must have none, however many lines name it.
    let mut always = Vec::new();
    for line in lines {
        let of_call = rules.entry(line.call()).or_default();
        match condition(line.when(), process)? {
            Some(condition) => of_call.push(SeccompRule::new(vec![condition])?),
            None => always.push(line.call()),
        }
    }
    for call in always {
        rules.insert(call, Vec::new());
    }
    SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn condition(when: When, process: u32) -> Result<Option<SeccompCondition>, BackendError> {
    let word = |arg, op, value: u32| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value.into()).map(Some);
    match when {
        When::Always => Ok(None),
        When::Is { arg, value } => word(arg, SeccompCmpOp::Eq, value),
        When::Without { arg, bits } => word(arg, SeccompCmpOp::MaskedEq(bits.into()), 0),
        When::ThisProcess => word(0, SeccompCmpOp::Eq, process),
    }
}
