//! What a process may do beside what its devices ask for (privileges(7)), and in which order it gives that up.
//!
//! A process that never begins to give something up is judged by none of these rules.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zvmm::sandbox::ladder::{self, Privilege, Set};

use crate::rules::Rule;
use crate::sys::DoubleSys;

/// Rules about privileges.
pub mod rules {
    crate::rules! {
        FIRST = "privilege-first", "smartos-zone 8.1", "what no process needs is given up before a device is opened";
        GAIN = "privilege-gain", "smartos-zone 8.1", "no set gets what is not permitted, and what is permitted and the limit do not grow";
        ORDER = "privilege-order", "smartos-zone 8.1", "privileges are cut in the order permitted, limit, effective";
        RUN = "privilege-run", "smartos-zone 8.1", "a guest runs once everything is given up that it does not need";
        MARK = "privilege-mark", "smartos-zone 4.6", "a zone's mark is renamed while files can be changed";
    }
}

/// What a process of a brand's zone begins with, of those that are spoken of: `limit_priv` has taken the others away.
const OF_A_BRAND: [Privilege; 5] = [
    Privilege::FileRead,
    Privilege::FileWrite,
    Privilege::ProcExec,
    Privilege::ProcSecflags,
    Privilege::ProcClockHighres,
];

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not begun.
    Untouched,
    /// What no process needs is gone.
    Started,
    /// All is gone that a running guest does not need.
    Locked,
}

struct State {
    effective: Vec<Privilege>,
    permitted: Vec<Privilege>,
    limit: Vec<Privilege>,
    stage: Stage,
    /// The sets that were made since it began, in turn.
    made: Vec<Set>,
    /// Where the mark of a zone is that is not provisioned yet, if it is the process's to rename.
    mark: Option<PathBuf>,
    /// What happened, in turn: changes of sets, the first device that was opened, the first entry into a guest.
    steps: Vec<String>,
}

/// The privileges of a process.
pub(crate) struct Privileges {
    state: Mutex<State>,
    /// Whether no entry into a guest can break a rule any more.
    settled: AtomicBool,
}

impl Default for Privileges {
    fn default() -> Self {
        let [effective, permitted, limit] = [(); 3].map(|()| OF_A_BRAND.to_vec());
        let (made, steps) = (Vec::new(), Vec::new());
        let state = State { effective, permitted, limit, stage: Stage::Untouched, made, mark: None, steps };
        Self { state: Mutex::new(state), settled: AtomicBool::new(false) }
    }
}

impl State {
    fn set(&mut self, set: Set) -> &mut Vec<Privilege> {
        match set {
            Set::Effective => &mut self.effective,
            Set::Permitted => &mut self.permitted,
            Set::Limit => &mut self.limit,
        }
    }

    fn note_once(&mut self, step: &str) {
        if !self.steps.iter().any(|before| before == step) {
            self.steps.push(step.to_owned());
        }
    }
}

impl Privileges {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device is opened.
    pub(crate) fn opens(&self) {
        self.lock().note_once("open");
    }

    /// A guest is entered: the rule that this breaks.
    pub(crate) fn enters(&self) -> Option<&'static Rule> {
        if self.settled.load(Ordering::Relaxed) {
            return None;
        }
        let mut state = self.lock();
        state.note_once("run");
        self.settled.store(state.stage == Stage::Locked, Ordering::Relaxed);
        (state.stage == Stage::Started).then_some(&rules::RUN)
    }
}

fn name(set: Set) -> &'static str {
    match set {
        Set::Effective => "effective",
        Set::Permitted => "permitted",
        Set::Limit => "limit",
    }
}

/// The calls of a process, for [`zvmm::sandbox::play`].
pub struct OfProcess(pub Arc<DoubleSys>);

impl OfProcess {
    /// What happened until now, in turn.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        self.0.privileges.lock().steps.clone()
    }

    /// The process is to rename this mark of its zone.
    pub fn marks(&self, mark: impl Into<PathBuf>) {
        self.0.privileges.lock().mark = Some(mark.into());
    }

    fn broken(&self, rule: &'static Rule, what: String) {
        self.0.ledger().note(rule, what);
    }

    /// Gives a set these privileges, as far as the kernel lets it.
    fn put(&self, state: &mut State, set: Set, privileges: Vec<Privilege>) -> io::Result<()> {
        let bound = if set == Set::Limit { &state.limit } else { &state.permitted };
        if let Some(gained) = privileges.iter().find(|privilege| !bound.contains(privilege)) {
            self.broken(&rules::GAIN, format!("{} in what is {}", gained.name(), name(set)));
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if set == Set::Permitted {
            state.effective.retain(|privilege| privileges.contains(privilege));
        }
        *state.set(set) = privileges;
        Ok(())
    }
}

impl ladder::Privileges for OfProcess {
    fn has(&self, set: Set, privilege: Privilege) -> io::Result<bool> {
        Ok(self.0.privileges.lock().set(set).contains(&privilege))
    }

    fn take_out(&self, set: Set, privileges: &[Privilege]) -> io::Result<()> {
        let mut state = self.0.privileges.lock();
        if state.stage == Stage::Untouched && state.steps.iter().any(|step| step == "open") {
            self.broken(&rules::FIRST, format!("what is {}", name(set)));
        }
        state.stage = Stage::Started;
        state.steps.push(format!("{}-", name(set)));
        let left = state.set(set).iter().copied().filter(|privilege| !privileges.contains(privilege)).collect();
        self.put(&mut state, set, left)
    }

    fn make(&self, set: Set, privileges: &[Privilege]) -> io::Result<()> {
        let mut state = self.0.privileges.lock();
        state.steps.push(format!(
            "{}={}",
            name(set),
            privileges.iter().map(|one| one.name()).collect::<Vec<_>>().join(",")
        ));
        state.made.push(set);
        let in_order =
            state.made.iter().zip([Set::Permitted, Set::Limit, Set::Effective]).all(|(made, due)| *made == due);
        if !in_order {
            let sets: Vec<_> = state.made.iter().map(|set| name(*set)).collect();
            self.broken(&rules::ORDER, sets.join(", "));
        }
        let gives_files_up = set == Set::Effective && !privileges.contains(&Privilege::FileWrite);
        if let Some(mark) = state.mark.as_ref().filter(|mark| gives_files_up && mark.exists()) {
            self.broken(&rules::MARK, format!("{} is still there", mark.display()));
        }
        if set == Set::Effective {
            state.stage = Stage::Locked;
        }
        self.put(&mut state, set, privileges.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use devices_host::sys::{OpenFlags, Sys as _};
    use zvmm::sandbox::ladder::Privileges as _;

    use super::*;
    use crate::{Host, Zone, bhyve};

    fn process() -> OfProcess {
        OfProcess(DoubleSys::new(&Host::new(vec![bhyve::Vmm::new()]), Zone::bhyve(1)))
    }

    #[track_caller]
    fn breaks(process: &OfProcess, wanted: &[&Rule]) {
        let broken: Vec<&str> = process.0.violations().iter().map(|violation| violation.rule.name).collect();
        assert_eq!(broken, wanted.iter().map(|rule| rule.name).collect::<Vec<_>>());
    }

    #[test]
    fn the_ladder_breaks_no_rule_and_leaves_what_it_says() {
        let process = process();
        ladder::start(&process).unwrap();
        process.0.open("/dev/vmmctl", OpenFlags { exclusive: true, ..OpenFlags::READ_WRITE }).unwrap();
        ladder::lock(&process).unwrap();
        assert_eq!(process.0.privileges.enters(), None);
        ladder::leave(&process).unwrap();
        breaks(&process, &[]);
        let kept = "file_read,proc_clock_highres";
        let steps = [
            "permitted-".to_owned(),
            "limit-".to_owned(),
            "open".to_owned(),
            format!("permitted={kept},file_write"),
            format!("limit={kept},file_write"),
            format!("effective={kept}"),
            "run".to_owned(),
            format!("effective={kept},file_write"),
        ];
        assert_eq!(process.steps(), steps);
    }

    #[test]
    fn every_rule_is_noticed_under_its_name_when_it_is_broken() {
        let late = process();
        late.0.open("/dev/vmmctl", OpenFlags { exclusive: true, ..OpenFlags::READ_WRITE }).unwrap();
        ladder::start(&late).unwrap();
        breaks(&late, &[&rules::FIRST]);
        assert_eq!(late.0.privileges.enters().map(|rule| rule.name), Some(rules::RUN.name));

        let greedy = process();
        assert!(greedy.make(Set::Permitted, &[Privilege::ProcFork]).is_err());
        assert!(greedy.make(Set::Limit, &[Privilege::NetAccess]).is_err());
        breaks(&greedy, &[&rules::GAIN, &rules::GAIN]);

        let hasty = process();
        hasty.make(Set::Effective, &[Privilege::FileRead, Privilege::FileWrite]).unwrap();
        breaks(&hasty, &[&rules::ORDER]);

        let forgetful = process();
        let mark = tempfile::NamedTempFile::new().unwrap();
        forgetful.marks(mark.path());
        ladder::start(&forgetful).unwrap();
        ladder::lock(&forgetful).unwrap();
        breaks(&forgetful, &[&rules::MARK]);
    }

    #[test]
    fn who_never_begins_is_left_alone() {
        let process = process();
        process.0.privileges.opens();
        assert_eq!(process.0.privileges.enters(), None);
    }
}
