//! Several queue pairs (virtio 1.3 §5.1.6.5.6): one until the driver asks for more, and none beyond what it asked for.

use super::control::{ALL, ERR, OK, half};
use super::*;
use crate::virtio::queue::F_RING_PACKED;
use crate::virtio::testing::Used;
use crate::wake::{Wake, WakeCounter};

const MQ: u64 = 1 << 22;
const PAIRS: usize = 3;
const CONTROL: u16 = 2 * PAIRS as u16;
const GUEST_TSO6: u64 = 1 << 8;

/// A card with three pairs, a worker for each of their queues, as threads have them.
struct Card {
    mem: GuestRam,
    device: NetDevice,
    links: Vec<MemoryLink>,
    workers: Vec<Box<dyn VirtioWorker<GuestRam>>>,
    counters: Vec<Arc<QueueCounters>>,
    wakes: Vec<Arc<WakeCounter>>,
    queues: Vec<DriverQueue>,
    interrupt: Arc<RecordingInterrupt>,
    features: u64,
}

fn device(wakes: &[Arc<WakeCounter>]) -> NetDevice {
    let receivers = wakes.iter().map(|wake| wake.clone() as Arc<dyn Wake>);
    NetDevice::new(config()).with_pairs(receivers.collect())
}

/// The workers of a card over these links: receive and send of the first pair, of the second, and so on.
fn workers(
    device: &NetDevice,
    links: &[MemoryLink],
    counters: &[Arc<QueueCounters>],
) -> Vec<Box<dyn VirtioWorker<GuestRam>>> {
    let mut workers: Vec<Box<dyn VirtioWorker<GuestRam>>> = Vec::new();
    for (pair, link) in links.iter().enumerate() {
        let (rx, tx) = (counters[2 * pair].clone(), counters[2 * pair + 1].clone());
        workers.push(match pair {
            0 => Box::new(device.rx_worker(link.clone(), rx, counters[usize::from(CONTROL)].clone())),
            _ => Box::new(device.further_rx_worker(pair as u16, link.clone(), rx)),
        });
        workers.push(Box::new(device.further_tx_worker(pair as u16, link.clone(), tx)));
    }
    workers
}

fn driver_queues(mem: &GuestRam, features: u64) -> Vec<DriverQueue> {
    (0..=u64::from(CONTROL)).map(|index| DriverQueue::new(mem, (index + 1) << 20, SIZE, features)).collect()
}

fn card(features: u64) -> Card {
    let mem = guest_ram(0x90_0000);
    let wakes: Vec<Arc<WakeCounter>> = (0..PAIRS).map(|_| Arc::default()).collect();
    let device = device(&wakes);
    let (links, counters) = (MemoryLink::of_pairs(PAIRS), (0..=CONTROL).map(|_| Arc::default()).collect::<Vec<_>>());
    let queues = driver_queues(&mem, features);
    let workers = workers(&device, &links, &counters);
    let interrupt = RecordingInterrupt::new();
    let mut card = Card { mem, device, links, workers, counters, wakes, queues, interrupt, features };
    card.start();
    card
}

impl Card {
    fn start(&mut self) {
        let states: Vec<_> = (0..=CONTROL).zip(self.queues.iter().map(DriverQueue::state)).collect();
        self.start_at(&states);
    }

    fn start_at(&mut self, states: &[(u16, QueueState)]) {
        let activation = self.interrupt.activation(self.features);
        for (queue, state) in states {
            let worker = self.workers.iter_mut().find(|worker| worker.queues().contains(queue)).unwrap();
            worker.start(&self.mem, *queue, *state, &activation);
        }
    }

    fn stop(&mut self, abandon: bool) -> Vec<(u16, QueueState)> {
        let mut states = Vec::new();
        for worker in &mut self.workers {
            worker.begin_stop(&self.mem);
            assert!(worker.poll_stopped(&self.mem, abandon));
            for queue in worker.queues().to_vec() {
                states.push((queue, worker.take_state(queue).unwrap()));
            }
            if abandon {
                worker.forget_driver();
            }
        }
        states
    }

    /// The driver resets the card and sets it up again.
    fn restart(&mut self) {
        self.stop(true);
        self.queues = driver_queues(&self.mem, self.features);
        self.start();
    }

    fn step(&mut self) {
        for worker in &mut self.workers {
            assert!((0..100).any(|_| !worker.step(&self.mem).again), "a worker never came to rest");
        }
    }

    fn begin(&mut self, command: &[u8]) -> Posted {
        let queue = &mut self.queues[usize::from(CONTROL)];
        let posted = queue.post(&[Buf::Read(command.to_vec()), Buf::Write(1)]);
        queue.publish();
        self.step();
        posted
    }

    /// The answer to a command, if there is one.
    fn answer(&mut self, posted: &Posted) -> Option<u8> {
        let queue = &mut self.queues[usize::from(CONTROL)];
        let [Used { len: 1, .. }] = *queue.used() else { return None };
        Some(queue.read(posted.buffers[1])[0])
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        let posted = self.begin(command);
        self.answer(&posted).expect("an answer")
    }

    fn set_pairs(&mut self, pairs: u16) -> u8 {
        self.command(&[[4, 0].as_slice(), &pairs.to_le_bytes()].concat())
    }

    fn rx(&mut self, pair: usize) -> &mut DriverQueue {
        &mut self.queues[2 * pair]
    }

    fn post_rx(&mut self, count: usize) {
        for pair in 0..PAIRS {
            for _ in 0..count {
                self.rx(pair).post(&[Buf::Write(2048)]);
            }
            self.rx(pair).publish();
        }
        self.step();
    }

    /// Three frames, each of another flow, arrive: how many the driver finds in each receive queue.
    fn three_flows(&mut self) -> [usize; PAIRS] {
        for flow in 0..3 {
            self.links[0].arrive_in_flow(flow, header(0, 0), &frame(60 + flow));
        }
        self.step();
        [0, 1, 2].map(|pair| self.rx(pair).used().len())
    }

    fn dropped(&self) -> [u64; PAIRS] {
        [0, 2, 4].map(|queue: usize| self.counters[queue].dropped.get())
    }

    fn save(&self) -> Vec<WorkerState> {
        self.workers.iter().map(|worker| worker.save()).collect()
    }
}

/// The features of a driver that uses several pairs, in both ring formats.
fn kinds() -> [u64; 2] {
    [ALL | MQ | MRG, ALL | MQ | MRG | F_RING_PACKED]
}

#[test]
fn several_pairs_are_offered_and_counted_and_one_is_not() {
    let wakes: Vec<Arc<WakeCounter>> = (0..17).map(|_| Arc::default()).collect();
    for (asked, pairs) in [(0, 1), (1, 1), (2, 2), (3, 3), (16, 16), (17, 16)] {
        let device = device(&wakes[..asked]);
        assert_eq!((device.pairs(), device.pairs_in_use()), (pairs, 1));
        assert_eq!(device.features() & MQ != 0, pairs > 1, "§5.1.3");
        let mut shown = [0; 2];
        device.read_config(8, &mut shown);
        device.write_config(8, &[9; 2]);
        assert_eq!((u16::from_le_bytes(shown), device.config_len()), (pairs, 12), "§5.1.4");
        assert_eq!(device.queue_max_sizes().len(), usize::from(2 * pairs + 1), "§5.1.2");
        assert_eq!(device.control_queue(), 2 * pairs);
    }
}

#[test]
fn the_control_queue_is_behind_the_pairs_that_the_driver_knows_of() {
    let wakes: Vec<Arc<WakeCounter>> = (0..3).map(|_| Arc::default()).collect();
    let several = device(&wakes);
    let places = |features| (0..7).map(|index| several.queue_of(index, features)).collect::<Vec<_>>();
    assert_eq!(places(ALL | MQ), (0..7).map(Some).collect::<Vec<_>>());
    assert_eq!(places(ALL), [Some(0), Some(1), Some(6), None, None, None, None]);
    let alone = device(&wakes[..1]);
    assert_eq!([0, 1, 2].map(|index| alone.queue_of(index, ALL)), [0, 1, 2].map(Some));
}

#[test]
fn frames_go_to_the_first_pair_until_the_driver_asks_for_more_and_to_none_beyond() {
    for features in kinds() {
        let mut card = card(features);
        card.post_rx(20);
        assert_eq!(card.three_flows(), [3, 0, 0], "after the start");
        for (pairs, found) in [(3, [1, 1, 1]), (2, [2, 1, 0]), (1, [3, 0, 0]), (2, [2, 1, 0]), (2, [2, 1, 0])] {
            assert_eq!(card.set_pairs(pairs), OK);
            assert_eq!(card.three_flows(), found, "{pairs} pairs");
            assert_eq!((card.device.pairs_in_use(), card.links[0].pairs()), (pairs, usize::from(pairs)));
        }
        card.restart();
        card.post_rx(10);
        assert_eq!((card.three_flows(), card.links[0].pairs()), ([3, 0, 0], 1), "after a reset");
    }
}

#[test]
fn a_number_of_pairs_that_there_is_not_is_refused_and_changes_nothing() {
    let mut card = card(ALL | MQ);
    card.post_rx(20);
    assert_eq!(card.set_pairs(2), OK);
    let before = card.save();
    for pairs in [0, 4, 5, 0x100, 0x200, 0x8000, 0xffff] {
        assert_eq!(card.set_pairs(pairs), ERR, "{pairs}");
    }
    // Too short, too long, and the commands of RSS and of hashes, which nobody offers (§5.1.6.5.7).
    for bytes in [&[4, 0][..], &[4, 0, 1], &[4, 0, 1, 0, 0], &[4, 1, 1, 0], &[4, 2, 1, 0], &[4, 3, 1, 0]] {
        assert_eq!(card.command(bytes), ERR, "{bytes:?}");
    }
    assert_eq!((card.save(), card.three_flows()), (before, [2, 1, 0]));
    for features in [ALL, V1 | MQ] {
        let mut without = self::card(features);
        assert_eq!(without.set_pairs(1), ERR, "{features:#x}");
    }
    let mut alone = rig(ALL | MQ);
    assert_eq!((alone.command(&[4, 0, 1, 0]), alone.command(&[4, 0, 2, 0])), (OK, ERR));
}

#[test]
fn a_link_that_cannot_serve_so_many_pairs_is_the_drivers_to_hear_of() {
    let mut card = card(ALL | MQ);
    card.post_rx(20);
    card.links[0].set_broken(true);
    assert_eq!(card.set_pairs(3), ERR);
    card.links[0].set_broken(false);
    assert_eq!((card.device.pairs_in_use(), card.three_flows()), (1, [3, 0, 0]));
}

#[test]
fn a_link_that_stays_with_more_pairs_as_the_driver_goes_is_asked_again() {
    for (mended_before_the_next_driver, found) in [(true, [3, 0, 0]), (false, [1, 0, 0])] {
        let mut card = card(ALL | MQ);
        assert_eq!(card.set_pairs(3), OK);
        card.links[0].set_broken(true);
        card.stop(true);
        card.queues = driver_queues(&card.mem, card.features);
        card.links[0].set_broken(!mended_before_the_next_driver);
        card.start();
        card.links[0].set_broken(false);
        card.post_rx(20);
        assert_eq!((card.device.pairs_in_use(), card.three_flows()), (1, found));
        // Whoever was not served begins anew.
        card.restart();
        card.post_rx(20);
        assert_eq!(card.three_flows(), [3, 0, 0]);
        assert_eq!((card.set_pairs(2), card.three_flows()), (OK, [2, 1, 0]));
        // What the driver has asked for since is not undone where it only pauses.
        let states = card.stop(false);
        card.start_at(&states);
        assert_eq!(card.three_flows(), [2, 1, 0]);
    }
}

#[test]
fn each_transmit_queue_sends_whether_or_not_its_pair_is_in_use() {
    let mut card = card(ALL | MQ);
    // §5.1.6.5.6.1: a driver does so only before its command is carried out, and loses nothing.
    for pairs in [1, 3] {
        assert_eq!(card.set_pairs(pairs), OK);
        for pair in 0..PAIRS {
            let queue = &mut card.queues[2 * pair + 1];
            queue.post(&[Buf::Read(header(0, 0).into()), Buf::Read(frame(60 + pair))]);
            queue.publish();
        }
        card.step();
        for pair in 0..PAIRS {
            assert_eq!(card.queues[2 * pair + 1].used().len(), 1);
            assert_eq!(card.links[pair].take_sent(), [(header(0, 0), frame(60 + pair))]);
        }
    }
}

#[test]
fn a_command_is_answered_when_no_receiver_works_by_what_was_before_it() {
    for (command, wakes) in [(&[4, 0, 2, 0][..], 2), (&[0, 0, 0], 1), (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1)] {
        let mut card = card(ALL | MQ);
        assert_eq!(card.set_pairs(3), OK);
        card.wakes[0].take();
        card.device.settings().enter(2);
        let posted = card.queues[usize::from(CONTROL)].post(&[Buf::Read(command.to_vec()), Buf::Write(1)]);
        card.queues[usize::from(CONTROL)].publish();
        assert!(!card.workers[0].step(&card.mem).again, "it sleeps until it is woken");
        assert!(!card.workers[0].step(&card.mem).again);
        assert_eq!(card.answer(&posted), None);
        card.device.settings().leave(2);
        assert_eq!(card.wakes[0].take(), wakes);
        card.workers[0].step(&card.mem);
        assert_eq!(card.answer(&posted), Some(OK));
    }
}

#[test]
fn a_command_without_an_answer_yet_is_carried_out_again_after_a_pause_and_forgotten_by_a_reset() {
    let mut card = card(ALL | MQ);
    card.device.settings().enter(1);
    let posted = card.begin_without_step(&[4, 0, 3, 0]);
    card.workers[0].step(&card.mem);
    assert_eq!(card.answer(&posted), None);
    let states = card.stop(false);
    assert_eq!(states.iter().find(|(queue, _)| *queue == CONTROL).unwrap().1.next_avail, 0, "it is in the ring again");
    card.device.settings().leave(1);
    card.start_at(&states);
    card.step();
    assert_eq!((card.answer(&posted), card.device.pairs_in_use()), (Some(OK), 3));

    card.device.settings().enter(1);
    card.begin_without_step(&[4, 0, 2, 0]);
    card.workers[0].step(&card.mem);
    card.device.settings().leave(1);
    card.restart();
    card.step();
    assert!(card.queues[usize::from(CONTROL)].used().is_empty());
    assert_eq!((card.device.pairs_in_use(), card.set_pairs(3)), (1, OK));
    card.device.settings().enter(1);
    card.begin_without_step(&[4, 0, 2, 0]);
    card.workers[0].step(&card.mem);
    card.device.settings().leave(1);
    assert!(card.workers[0].reset_queue(&card.mem, CONTROL), "and by a reset of its queue");
}

impl Card {
    fn begin_without_step(&mut self, command: &[u8]) -> Posted {
        let queue = &mut self.queues[usize::from(CONTROL)];
        let posted = queue.post(&[Buf::Read(command.to_vec()), Buf::Write(1)]);
        queue.publish();
        posted
    }
}

#[test]
fn what_waits_for_buffers_of_a_pair_is_lost_when_that_is_in_use_no_more() {
    let mut card = card(ALL | MQ | MRG);
    assert_eq!(card.set_pairs(2), OK);
    // There was room for it once, and there is not now.
    for _ in 0..2 {
        card.rx(1).post(&[Buf::Write(1000)]);
    }
    card.rx(1).publish();
    card.step();
    card.links[1].arrive(header(0, 0), &frame(900));
    card.links[1].arrive(header(0, 0), &frame(1200));
    card.step();
    assert_eq!(card.rx(1).used().len(), 1);
    assert!(!card.workers[2].save().to_guest.is_empty());
    assert_eq!(card.set_pairs(1), OK);
    assert_eq!(card.dropped(), [0, 1, 0]);
    assert!(card.workers[2].save().to_guest.is_empty());
    card.post_rx(4);
    assert_eq!(card.set_pairs(2), OK);
    assert_eq!(card.three_flows(), [2, 1, 0], "nothing of before");
}

#[test]
fn queues_that_were_never_set_up_may_be_asked_for_and_take_nothing() {
    let mut card = card(ALL | MQ);
    let states = card.stop(false);
    card.start_at(&states.into_iter().filter(|(queue, _)| [0, 1, CONTROL].contains(queue)).collect::<Vec<_>>());
    card.post_rx(10);
    assert_eq!(card.set_pairs(3), OK);
    assert_eq!(card.three_flows(), [1, 0, 0], "§5.1.6.5.6.1: the driver would have had to");
    assert_eq!((card.set_pairs(1), card.three_flows()), (OK, [3, 0, 0]));
}

#[test]
fn filter_and_offloads_are_those_of_every_pair() {
    let mut card = card(ALL | MQ | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6);
    card.post_rx(30);
    assert_eq!(card.set_pairs(3), OK);
    let table = [vec![1, 0], half(&[[2, 9, 9, 9, 9, 9]]), half(&[])].concat();
    assert_eq!((card.command(&[0, 0, 0]), card.command(&table)), (OK, OK));
    let frames = |card: &mut Card, header: Header, to: [u8; 6]| {
        let mut bytes = frame(60);
        bytes[..6].copy_from_slice(&to);
        (0..3).for_each(|flow| card.links[0].arrive_in_flow(flow, header, &bytes));
        card.step();
        [0, 1, 2].map(|pair| card.rx(pair).used().len())
    };
    assert_eq!(frames(&mut card, header(0, 0), [2, 9, 9, 9, 9, 9]), [1; 3]);
    assert_eq!(frames(&mut card, header(0, 0), [2, 8, 8, 8, 8, 8]), [0; 3]);
    assert_eq!([0, 2, 4].map(|queue: usize| card.counters[queue].filtered.get()), [1; 3]);
    let segment = header(1, 1);
    assert_eq!(frames(&mut card, segment, [2, 9, 9, 9, 9, 9]), [1; 3]);
    assert_eq!(card.command(&[[5, 0].as_slice(), &GUEST_CSUM.to_le_bytes()].concat()), OK);
    assert_eq!((frames(&mut card, segment, [2, 9, 9, 9, 9, 9]), card.dropped()), ([0; 3], [1; 3]));
    card.restart();
    card.post_rx(5);
    assert_eq!(card.set_pairs(3), OK);
    assert_eq!(frames(&mut card, segment, [2, 8, 8, 8, 8, 8]), [1; 3], "the next driver is asked anew");
}

#[test]
fn the_number_of_pairs_survives_a_pause_and_goes_with_the_saved_state() {
    for features in kinds() {
        let mut card = card(features);
        card.post_rx(20);
        assert!(card.save().iter().all(|state| state.card.is_none()), "nothing is set yet");
        assert_eq!((card.set_pairs(2), card.command(&[0, 0, 0]), card.command(&[0, 2, 1])), (OK, OK, OK));
        let states = card.stop(false);
        let saved = card.save();
        card.start_at(&states);
        assert_eq!((card.three_flows(), card.save()), ([2, 1, 0], saved.clone()));

        let states = card.stop(false);
        card.device = device(&card.wakes);
        card.links = MemoryLink::of_pairs(PAIRS);
        card.workers = workers(&card.device, &card.links, &card.counters);
        for (worker, state) in card.workers.iter_mut().zip(&saved) {
            worker.restore(state).unwrap();
        }
        assert_eq!((card.save(), card.device.pairs_in_use(), card.links[0].pairs()), (saved, 2, 2));
        card.start_at(&states);
        assert_eq!(card.three_flows(), [2, 1, 0]);
    }
}

#[test]
fn a_saved_state_with_pairs_that_there_are_not_or_of_another_worker_is_refused() {
    let mut card = card(ALL | MQ);
    assert_eq!(card.set_pairs(3), OK);
    let good = card.save();
    for pairs in [0, 4, 0xffff] {
        let mut bad = good[0].clone();
        bad.card.as_mut().unwrap().pairs = pairs;
        assert!(card.workers[0].restore(&bad).is_err(), "{pairs}");
    }
    assert!(rig(ALL).worker.restore(&good[0]).is_err(), "this card has one");
    for worker in [1, 2, 3] {
        assert!(card.workers[worker].restore(&good[0]).is_err(), "worker {worker} has no control queue");
    }
    card.links[0].set_broken(true);
    assert!(card.workers[0].restore(&good[0]).is_err(), "the link refuses");
    card.links[0].set_broken(false);
    card.workers[0].restore(&good[0]).unwrap();
    assert_eq!(card.save(), good);
}

#[test]
fn a_queue_of_a_further_pair_is_reset_alone_and_goes_on_with_the_settings() {
    let mut card = card(ALL | MQ);
    card.post_rx(10);
    assert_eq!((card.set_pairs(2), card.command(&[0, 0, 0]), card.command(&[0, 2, 1])), (OK, OK, OK));
    assert!(card.workers[2].reset_queue(&card.mem, 2));
    assert_eq!(card.three_flows(), [2, 0, 0], "§5.1.6.5.6.2: nothing is delivered to it");
    card.queues[2] = DriverQueue::new(&card.mem, 3 << 20, SIZE, card.features);
    let state = card.queues[2].state();
    card.start_at(&[(2, state)]);
    card.rx(1).post(&[Buf::Write(2048)]);
    card.rx(1).publish();
    card.step();
    assert_eq!((card.rx(1).used().len(), card.counters[2].dropped.get()), (0, 1), "what came meanwhile is lost");
    assert_eq!(card.three_flows(), [2, 1, 0]);
}

#[test]
fn while_the_link_is_down_every_pair_loses_what_arrives() {
    let mut card = card(ALL | MQ);
    card.post_rx(10);
    assert_eq!(card.set_pairs(3), OK);
    card.device.set_link(false);
    assert_eq!(card.three_flows(), [0; 3]);
    assert_eq!([0, 2, 4].map(|queue: usize| card.counters[queue].link_down.get()), [1; 3]);
    card.device.set_link(true);
    assert_eq!(card.three_flows(), [1; 3]);
}

#[test]
fn pairs_change_under_traffic_and_every_frame_is_delivered_once_or_lost_with_its_pair() {
    for features in kinds() {
        let mut card = card(features);
        card.post_rx(60);
        let (mut arrived, mut found) = (0, 0);
        for round in 0..40u16 {
            for flow in 0..3 {
                card.links[0].arrive_in_flow(flow, header(0, 0), &frame(60));
                arrived += 1;
            }
            let pairs = round % 3 + 1;
            let before: Vec<usize> = card.links.iter().map(MemoryLink::waiting).collect();
            assert_eq!(card.set_pairs(pairs), OK);
            // What waits in the link for a pair that is in use no more is lost there.
            let lost: usize = before[usize::from(pairs)..].iter().sum();
            arrived -= lost;
            for pair in 0..PAIRS {
                let used = card.rx(pair).used().len();
                assert!(pair < usize::from(pairs) || used == 0, "§5.1.6.5.6.2: pair {pair} of {pairs}");
                found += used;
                for _ in 0..used {
                    card.rx(pair).post(&[Buf::Write(2048)]);
                }
                card.rx(pair).publish();
            }
            if round % 16 == 15 {
                assert_eq!(found, arrived);
                card.restart();
                card.post_rx(60);
            }
        }
        assert_eq!(found, arrived);
        assert_eq!(card.dropped(), [0; 3]);
    }
}
