use std::sync::Mutex;

use super::super::DiskFailure;
use super::*;

/// Writes down what it is told to do.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn push(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Machine for Recorder {
    fn pause(&self) {
        self.push("pause");
    }
    fn resume(&self) {
        self.push("resume");
    }
    fn press_power_button(&self) {
        self.push("press");
    }
    fn reset(&self) {
        self.push("reset");
    }
    fn stop(&self) {
        self.push("stop");
    }
    fn trust_disks(&self) {
        self.push("trust");
    }
    fn join(&self) {}
    fn inject_nmi(&self, vcpu: u8) {
        self.push(&format!("nmi {vcpu}"));
    }
    fn stats(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    fn resize_disk(&self, _resize: &crate::control::DiskResize, _ticket: crate::control::Ticket) {}
    fn set_link(&self, _change: &crate::control::LinkChange) -> Result<(), String> {
        Ok(())
    }
}

fn running(policy: Policy) -> (Controller, Recorder) {
    let (mut controller, machine) = (Controller::new(policy, 2), Recorder::default());
    controller.start(&machine);
    assert_eq!(machine.take(), ["resume"]);
    (controller, machine)
}

const GUEST_RESET: MachineEvent = MachineEvent::GuestReset { source: "test" };

fn events() -> [MachineEvent; 7] {
    [
        MachineEvent::GuestPowerOff,
        GUEST_RESET,
        MachineEvent::TripleFault { vcpu: 0 },
        MachineEvent::GuestPanicked,
        MachineEvent::AllHalted,
        MachineEvent::ResetDone,
        MachineEvent::HostError { what: "test".into() },
    ]
}

#[test]
fn a_guest_that_powers_off_ends_the_process_with_success() {
    let (mut controller, machine) = running(Policy::default());
    let events = controller.machine_event(MachineEvent::GuestPowerOff, &machine);
    assert_eq!(events, [Event::Shutdown { guest: true, reason: "guest-shutdown" }]);
    assert_eq!((controller.state(), machine.take()), (State::Stopped(Exit::Done), vec!["stop".into()]));
}

#[test]
fn a_guest_that_resets_is_restarted_in_place() {
    let (mut controller, machine) = running(Policy::default());
    assert_eq!(controller.machine_event(GUEST_RESET, &machine), [Event::Reset { guest: true }]);
    assert_eq!(controller.state(), State::Resetting { paused: false });
    assert_eq!(controller.machine_event(MachineEvent::ResetDone, &machine), []);
    assert_eq!((controller.state(), machine.take()), (State::Running, vec!["reset".into()]));
}

#[test]
fn a_second_reset_request_joins_the_one_in_progress() {
    let (mut controller, machine) = running(Policy::default());
    controller.machine_event(GUEST_RESET, &machine);
    assert_eq!(controller.machine_event(MachineEvent::TripleFault { vcpu: 1 }, &machine), []);
    assert_eq!(controller.command(Command::Reset, &machine), Ok(vec![]));
    assert_eq!(machine.take(), ["reset"]);
}

#[test]
fn each_policy_ends_the_process_with_its_own_status() {
    let policy = Policy {
        on_reset: OnReset::Exit,
        on_triple_fault: OnTripleFault::Exit,
        on_panic: OnPanic::Exit,
        ends_halted: true,
        ..Policy::default()
    };
    for (event, exit) in [
        (GUEST_RESET, Exit::GuestReset),
        (MachineEvent::TripleFault { vcpu: 0 }, Exit::TripleFault),
        (MachineEvent::GuestPanicked, Exit::GuestPanic),
        (MachineEvent::AllHalted, Exit::Halted),
        (MachineEvent::HostError { what: "KVM_RUN: Bad address".into() }, Exit::HostFailed),
    ] {
        let (mut controller, machine) = running(policy);
        controller.machine_event(event, &machine);
        assert_eq!((controller.state(), machine.take()), (State::Stopped(exit), vec!["stop".into()]));
    }
}

#[test]
fn a_triple_fault_treated_as_a_reset_follows_the_reset_policy() {
    let (mut controller, machine) = running(Policy { on_reset: OnReset::Exit, ..Policy::default() });
    controller.machine_event(MachineEvent::TripleFault { vcpu: 0 }, &machine);
    assert_eq!(controller.state(), State::Stopped(Exit::GuestReset));
}

#[test]
fn a_guest_that_is_halted_for_ever_waits_for_a_reset() {
    let (mut controller, machine) = running(Policy::default());
    assert_eq!(controller.machine_event(MachineEvent::AllHalted, &machine), []);
    assert_eq!((controller.state(), machine.take()), (State::Running, vec![]));
}

#[test]
fn a_panic_is_only_told_by_default() {
    let (mut controller, machine) = running(Policy::default());
    assert_eq!(controller.machine_event(MachineEvent::GuestPanicked, &machine), [Event::GuestPanicked]);
    assert_eq!((controller.state(), machine.take()), (State::Running, vec![]));
}

#[test]
fn a_panic_is_told_once_each_time_the_guest_starts() {
    let (mut controller, machine) = running(Policy::default());
    controller.machine_event(MachineEvent::GuestPanicked, &machine);
    assert_eq!(controller.machine_event(MachineEvent::GuestPanicked, &machine), []);
    controller.machine_event(GUEST_RESET, &machine);
    controller.machine_event(MachineEvent::ResetDone, &machine);
    assert_eq!(controller.machine_event(MachineEvent::GuestPanicked, &machine), [Event::GuestPanicked]);
}

#[test]
fn a_stop_wins_over_a_reset_in_progress() {
    let (mut controller, machine) = running(Policy::default());
    controller.command(Command::Reset, &machine).unwrap();
    let events = controller.command(Command::Quit, &machine).unwrap();
    assert_eq!(events, [Event::Shutdown { guest: false, reason: "host-qmp-quit" }]);
    assert_eq!(controller.machine_event(MachineEvent::ResetDone, &machine), []);
    assert_eq!((controller.state(), machine.take()), (State::Stopped(Exit::Done), vec!["reset".into(), "stop".into()]));
}

#[test]
fn nothing_moves_a_guest_that_has_ended() {
    let (mut controller, machine) = running(Policy::default());
    controller.machine_event(MachineEvent::GuestPowerOff, &machine);
    machine.take();
    for event in events() {
        assert_eq!(controller.machine_event(event, &machine), []);
    }
    for signal in [Signal::Terminate, Signal::Interrupt, Signal::Interrupt, Signal::Quit] {
        assert_eq!(controller.signal(signal, &machine), []);
    }
    for command in [Command::Pause, Command::Resume, Command::PowerButton, Command::Reset, Command::Nmi { vcpu: 0 }] {
        assert_eq!(controller.command(command, &machine), Err(CommandError::Stopped));
    }
    assert_eq!(controller.command(Command::Quit, &machine), Ok(vec![]));
    controller.start(&machine);
    assert_eq!((controller.state(), machine.take()), (State::Stopped(Exit::Done), vec![]));
}

#[test]
fn sigterm_presses_the_power_button_however_often_it_comes() {
    let (mut controller, machine) = running(Policy::default());
    for _ in 0..5 {
        assert_eq!(controller.signal(Signal::Terminate, &machine), [Event::PowerButton]);
    }
    assert_eq!((controller.state(), machine.take()), (State::Running, vec!["press".to_owned(); 5]));
}

#[test]
fn a_second_sigint_stops_at_once_and_a_first_presses_the_power_button() {
    let (mut controller, machine) = running(Policy::default());
    controller.signal(Signal::Interrupt, &machine);
    controller.signal(Signal::Terminate, &machine);
    assert_eq!(controller.state(), State::Running);
    controller.signal(Signal::Interrupt, &machine);
    assert_eq!(controller.state(), State::Stopped(Exit::Interrupted));
    assert_eq!(machine.take(), ["press", "press", "stop"]);
}

#[test]
fn pause_and_resume_tell_only_what_changes() {
    let (mut controller, machine) = running(Policy::default());
    assert_eq!(controller.command(Command::Resume, &machine), Ok(vec![]));
    assert_eq!(controller.command(Command::Pause, &machine), Ok(vec![Event::Stopped]));
    assert_eq!(controller.command(Command::Pause, &machine), Ok(vec![]));
    assert_eq!(controller.command(Command::Resume, &machine), Ok(vec![Event::Resumed]));
    assert_eq!(machine.take(), ["trust", "pause", "trust", "resume"]);
}

#[test]
fn a_guest_paused_before_or_during_a_reset_is_paused_after_it() {
    for pause_first in [true, false] {
        let (mut controller, machine) = running(Policy::default());
        let order = if pause_first { [Command::Pause, Command::Reset] } else { [Command::Reset, Command::Pause] };
        for command in order {
            controller.command(command, &machine).unwrap();
        }
        assert_eq!(controller.state(), State::Resetting { paused: true });
        controller.machine_event(MachineEvent::ResetDone, &machine);
        assert_eq!(controller.state(), State::Paused);
        controller.command(Command::Resume, &machine).unwrap();
        assert_eq!(machine.take().last().map(String::as_str), Some("resume"));
    }
}

#[test]
fn a_resume_during_a_reset_lets_the_guest_run_after_it() {
    let (mut controller, machine) = running(Policy::default());
    for command in [Command::Pause, Command::Reset, Command::Resume] {
        controller.command(command, &machine).unwrap();
    }
    controller.machine_event(MachineEvent::ResetDone, &machine);
    assert_eq!(
        (controller.state(), machine.take()),
        (State::Running, vec!["pause".into(), "reset".into(), "trust".into(), "resume".into()])
    );
}

#[test]
fn an_nmi_needs_a_vcpu_that_exists() {
    let (mut controller, machine) = running(Policy::default());
    assert_eq!(controller.command(Command::Nmi { vcpu: 2 }, &machine), Err(CommandError::NoSuchVcpu(2)));
    assert_eq!(controller.command(Command::Nmi { vcpu: 1 }, &machine), Ok(vec![]));
    assert_eq!(machine.take(), ["nmi 1"]);
}

#[test]
fn a_guest_stopped_before_it_started_never_starts() {
    let (mut controller, machine) = (Controller::new(Policy::default(), 1), Recorder::default());
    controller.signal(Signal::Quit, &machine);
    controller.start(&machine);
    assert_eq!(machine.take(), ["stop"]);
}

/// Every sequence of inputs of length four, against what must hold in all of them.
#[test]
fn in_no_order_of_events_does_anything_follow_a_stop() {
    type Input = fn(&mut Controller, &Recorder);
    let inputs: [Input; 8] = [
        |c, m| drop(c.command(Command::Pause, m)),
        |c, m| drop(c.command(Command::Resume, m)),
        |c, m| drop(c.command(Command::Reset, m)),
        |c, m| drop(c.command(Command::Quit, m)),
        |c, m| drop(c.machine_event(GUEST_RESET, m)),
        |c, m| drop(c.machine_event(MachineEvent::ResetDone, m)),
        |c, m| drop(c.machine_event(MachineEvent::GuestPowerOff, m)),
        |c, m| drop(c.signal(Signal::Interrupt, m)),
    ];
    for sequence in 0..inputs.len().pow(4) {
        let (mut controller, machine) = running(Policy::default());
        let mut rest = sequence;
        for _ in 0..4 {
            inputs[rest % inputs.len()](&mut controller, &machine);
            rest /= inputs.len();
        }
        let orders = machine.take();
        let after_stop = orders.iter().skip_while(|order| *order != "stop").skip(1).count();
        assert_eq!(after_stop, 0, "{orders:?}");
        assert_eq!(orders.contains(&"stop".to_owned()), matches!(controller.state(), State::Stopped(_)));
    }
}

fn disk_failed(held: bool) -> DiskFailure {
    DiskFailure { disk: "disk0".into(), write: true, no_space: false, held, reason: "Input/output error".into() }
}

#[test]
fn a_disk_that_keeps_a_failed_request_holds_the_guest_until_it_is_resumed() {
    let (mut controller, machine) = running(Policy::default());
    let (failed, told) = (MachineEvent::DiskFailed(disk_failed(true)), Event::DiskFailed(disk_failed(true)));
    assert_eq!(controller.machine_event(failed.clone(), &machine), [told.clone(), Event::Stopped]);
    assert_eq!((controller.state(), machine.take()), (State::DiskFailed, vec!["pause".into()]));
    assert_eq!(controller.machine_event(failed, &machine), [told], "another one finds it held");
    assert_eq!(controller.command(Command::Pause, &machine), Ok(vec![]));
    assert_eq!(controller.state(), State::DiskFailed);
    assert_eq!(controller.command(Command::Resume, &machine), Ok(vec![Event::Resumed]));
    assert_eq!((controller.state(), machine.take()), (State::Running, vec!["trust".into(), "resume".into()]));
}

#[test]
fn a_guest_that_was_told_of_a_failure_runs_on() {
    let (mut controller, machine) = running(Policy::default());
    let (failed, told) = (MachineEvent::DiskFailed(disk_failed(false)), Event::DiskFailed(disk_failed(false)));
    assert_eq!(controller.machine_event(failed, &machine), [told]);
    assert_eq!((controller.state(), machine.take()), (State::Running, vec![]));
    assert_eq!(controller.command(Command::Resume, &machine), Ok(vec![]));
    assert_eq!(machine.take(), ["trust"], "a guest that runs is not resumed, but its disks are to be trusted again");
}

#[test]
fn a_failure_before_a_reset_does_not_hold_the_guest_after_it() {
    let (mut controller, machine) = running(Policy::default());
    controller.machine_event(GUEST_RESET, &machine);
    let (failed, told) = (MachineEvent::DiskFailed(disk_failed(true)), Event::DiskFailed(disk_failed(true)));
    assert_eq!(controller.machine_event(failed, &machine), [told]);
    controller.machine_event(MachineEvent::ResetDone, &machine);
    assert_eq!((controller.state(), machine.take()), (State::Running, vec!["reset".into()]));
}

#[test]
fn a_guest_that_was_to_end_and_resets_itself_has_ended_where_a_stop_wins() {
    let terminate =
        |controller: &mut Controller, machine: &Recorder| drop(controller.signal(Signal::Terminate, machine));
    for on_reset in [OnReset::Restart, OnReset::Exit] {
        for event in [GUEST_RESET, MachineEvent::TripleFault { vcpu: 0 }] {
            let policy = Policy { on_reset, stop_wins: true, ..Policy::default() };
            let (mut controller, machine) = running(policy);
            controller.set_now_ns(5);
            terminate(&mut controller, &machine);
            controller.set_now_ns(4 + STOP_NS);
            let ended = [Event::Shutdown { guest: true, reason: "guest-reset" }];
            assert_eq!(controller.machine_event(event, &machine), ended);
            assert_eq!(
                (controller.state(), machine.take()),
                (State::Stopped(Exit::Done), vec!["press".into(), "stop".into()])
            );
        }
    }
}

#[test]
fn an_order_to_end_that_was_not_followed_is_forgotten_and_a_reset_that_is_ordered_is_one() {
    let policy = Policy { stop_wins: true, ..Policy::default() };
    let (mut controller, machine) = running(policy);
    assert_eq!(controller.command(Command::PowerButton, &machine), Ok(vec![Event::PowerButton]));
    assert_eq!(controller.command(Command::Reset, &machine), Ok(vec![Event::Reset { guest: false }]));
    controller.machine_event(MachineEvent::ResetDone, &machine);
    controller.set_now_ns(STOP_NS);
    assert_eq!(controller.machine_event(GUEST_RESET, &machine), [Event::Reset { guest: true }]);
}

#[test]
fn an_order_to_end_that_comes_after_the_reset_still_wins() {
    for (stop_wins, exit) in [(true, Exit::Done), (false, Exit::GuestReset)] {
        for signal in [Signal::Terminate, Signal::Interrupt, Signal::Quit] {
            let (mut controller, machine) = running(Policy { on_reset: OnReset::Exit, stop_wins, ..Policy::default() });
            controller.machine_event(GUEST_RESET, &machine);
            assert_eq!(controller.state(), State::Stopped(Exit::GuestReset));
            assert_eq!(controller.signal(signal, &machine), []);
            assert_eq!((controller.state(), machine.take()), (State::Stopped(exit), vec!["stop".into()]));
        }
        // No other end becomes another one.
        let (mut controller, machine) = running(Policy { stop_wins, ..Policy::default() });
        controller.machine_event(MachineEvent::HostError { what: "test".into() }, &machine);
        controller.signal(Signal::Terminate, &machine);
        assert_eq!(controller.state(), State::Stopped(Exit::HostFailed));
    }
}

#[test]
fn an_order_to_end_that_comes_in_a_reset_ends_it() {
    for (stop_wins, state) in [(true, State::Stopped(Exit::Done)), (false, State::Resetting { paused: false })] {
        let (mut controller, machine) = running(Policy { stop_wins, ..Policy::default() });
        controller.machine_event(GUEST_RESET, &machine);
        let events = controller.signal(Signal::Terminate, &machine);
        assert_eq!((controller.state(), &events[0]), (state, &Event::PowerButton));
        assert_eq!(machine.take(), if stop_wins { ["reset", "stop"] } else { ["reset", "press"] });
    }
}
