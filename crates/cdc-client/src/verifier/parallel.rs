//! Runs work on several threads. One thread finds the pieces of work and queues them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::Error;

const MAX_WAITING: usize = 64;

pub(super) struct WorkQueue<'f, T> {
    sender: SyncSender<T>,
    is_stopped: &'f AtomicBool,
}

impl<T> WorkQueue<'_, T> {
    /// Queues a piece. Returns false if a thread has failed, because no more pieces are needed then.
    pub(super) fn send(&self, piece: T) -> bool {
        !self.is_stopped.load(Ordering::Relaxed) && self.sender.send(piece).is_ok()
    }
}

/// Runs `find` on this thread, and `work` for each queued piece on other threads.
///
/// # Errors
/// The first error of `work`, else the error of `find`.
pub(super) fn in_parallel<T: Send>(
    threads: usize,
    find: impl FnOnce(&WorkQueue<T>) -> Result<(), Error>,
    work: impl Fn(T) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let (sender, receiver) = sync_channel(MAX_WAITING);
    let (receiver, is_stopped) = (Mutex::new(receiver), AtomicBool::new(false));
    let next = || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let run = || {
        let mut done = Ok(());
        // After a failure, all threads discard further pieces. Otherwise `find` would block on the full queue.
        while let Ok(piece) = next() {
            if !is_stopped.load(Ordering::Relaxed) {
                done = work(piece);
                is_stopped.fetch_or(done.is_err(), Ordering::Relaxed);
            }
        }
        done
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let queue = WorkQueue { sender, is_stopped: &is_stopped };
        let found = find(&queue);
        // The threads end when the sender is dropped.
        drop(queue);
        let join = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let done: Vec<Result<(), Error>> = workers.into_iter().map(join).collect();
        done.into_iter().collect::<Result<(), Error>>().and(found)
    })
}
