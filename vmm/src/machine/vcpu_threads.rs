//! The vCPUs' threads, from before there is a machine to after its end.
//!
//! They start first: confining a thread takes the kernel about as long as making a VM does, and meanwhile another CPU can
//! do the one while this one does the other. Without that a guest would begin later by it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::StartError;
use crate::config::system_text;
use crate::sandbox::{self, ThreadKind};

/// What a thread does in its life.
type Job = Box<dyn FnOnce() + Send>;

/// Threads that are confined, or about to be, and wait for what to run. Those that get nothing end with it.
pub struct VcpuThreads(Vec<(Arc<Post>, JoinHandle<()>)>);

impl VcpuThreads {
    /// Starts `count` threads, the first ones on the CPUs of `pin`.
    ///
    /// # Errors
    /// When the host cannot start one, or has no such CPU.
    pub fn start(count: u8, pin: &[usize]) -> Result<Self, StartError> {
        let mut threads = Self(Vec::with_capacity(count.into()));
        for id in 0..count {
            let post = Arc::new(Post::default());
            let cpus: Vec<usize> = pin.get(usize::from(id)).copied().into_iter().collect();
            let body = {
                let post = post.clone();
                move || {
                    sandbox::enter(ThreadKind::Vcpu);
                    if let Some(job) = post.wait() {
                        job();
                    }
                }
            };
            let thread = devices_host::thread::spawn(&format!("vcpu{id}"), &cpus, body).map_err(|error| {
                StartError::Host(format!("vcpu{id}: cannot start its thread: {}", system_text(&error)))
            })?;
            threads.0.push((post, thread));
        }
        Ok(threads)
    }

    /// Gives each thread its job, in order.
    pub fn run(mut self, jobs: impl IntoIterator<Item = Job>) -> Vec<JoinHandle<()>> {
        let mut jobs = jobs.into_iter();
        let threads = std::mem::take(&mut self.0);
        threads.into_iter().map(|(post, thread)| (post.give(jobs.next()), thread).1).collect()
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        for (post, thread) in self.0.drain(..) {
            post.give(None);
            // A thread that panicked has aborted the process.
            let _ = thread.join();
        }
    }
}

/// Where a thread gets its job.
#[derive(Default)]
struct Post {
    /// Empty until it is decided; then whether there is one.
    job: Mutex<Option<Option<Job>>>,
    decided: Condvar,
}

impl Post {
    fn give(&self, job: Option<Job>) {
        // Let go before the thread is woken, which would wait for it otherwise.
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        self.decided.notify_one();
    }

    // By a condition variable, which needs no call that the sandbox refuses; a channel yields the CPU before it sleeps.
    fn wait(&self) -> Option<Job> {
        let mut job = self.job.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match job.take() {
                Some(job) => return job,
                None => job = self.decided.wait(job).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_thread_runs_its_own_job_under_its_own_name() {
        let (tell, told) = mpsc::channel();
        let jobs = (0..3).map(|id| {
            let tell = tell.clone();
            Box::new(move || tell.send((id, std::thread::current().name().map(str::to_owned))).unwrap()) as Job
        });
        let threads = VcpuThreads::start(3, &[]).unwrap().run(jobs);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(tell);
        let mut ran: Vec<_> = told.iter().collect();
        ran.sort();
        assert_eq!(ran, [0, 1, 2].map(|id| (id, Some(format!("vcpu{id}")))));
    }

    #[test]
    fn threads_without_a_job_end() {
        drop(VcpuThreads::start(2, &[]).unwrap());
        let threads = VcpuThreads::start(2, &[]).unwrap().run([]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named_and_the_threads_before_it_end() {
        let error = VcpuThreads::start(2, &[0, 100_000]).err().unwrap().to_string();
        assert!(error.starts_with("vcpu1: cannot start its thread: "), "{error}");
    }
}
