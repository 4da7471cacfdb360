//! Worker threads and how they and the control thread speak: a channel each way, with a waker for
//! the mio loop at its end.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use mio::{Registry, Token, Waker};

use super::exit::{Code, Failure};

/// The sending end of a thread's inbox. Clones send to the same thread.
#[derive(Debug)]
pub(super) struct Outbox<M> {
    sender: Sender<M>,
    waker: Arc<Waker>,
}

impl<M> Clone for Outbox<M> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<M> Outbox<M> {
    /// Sends a message and wakes its reader. A thread that has ended hears nothing.
    pub(super) fn send(&self, message: M) {
        if self.sender.send(message).is_ok()
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a thread cannot be woken");
        }
    }
}

/// An inbox for the loop that polls `registry`, which wakes with `token` when a message is there.
pub(super) fn inbox<M>(registry: &Registry, token: Token) -> io::Result<(Outbox<M>, Receiver<M>)> {
    let waker = Arc::new(Waker::new(registry, token)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Outbox { sender, waker }, receiver))
}

/// A running worker.
#[derive(Debug)]
pub(super) struct Handle<M> {
    /// How it is told something.
    pub(super) orders: Outbox<M>,
    thread: JoinHandle<()>,
}

/// Gives all workers their last order, and waits until they have ended.
pub(super) fn end<M>(workers: Vec<Handle<M>>, last: impl Fn() -> M) {
    for worker in &workers {
        worker.orders.send(last());
    }
    for worker in workers {
        // A panic of the worker was caught in the thread and told.
        let _ = worker.thread.join();
    }
}

/// What a worker's last report says: it has ended, by order or for a reason.
#[derive(Debug)]
pub(super) struct Ended {
    worker: u16,
    why: Option<String>,
}

impl Ended {
    /// The failure that it is if no order was given, with what to do.
    pub(super) fn failure(self, remedy: &str) -> Failure {
        let Self { worker, why } = self;
        let why = why.unwrap_or_else(|| "without a reason".to_owned());
        Failure::new(Code::Software, format_args!("worker {worker} has ended: {why}; {remedy}"))
    }
}

/// Starts the thread `worker-<index>`, which runs `body`. What ended it, if not an order, is an error or
/// a panic: its last report says so.
pub(super) fn spawn<M, R: Send + 'static>(
    index: u16,
    orders: Outbox<M>,
    reports: Outbox<R>,
    last: fn(Ended) -> R,
    body: impl FnOnce(&Outbox<R>) -> io::Result<()> + Send + 'static,
) -> io::Result<Handle<M>> {
    let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let why = match catch_unwind(AssertUnwindSafe(|| body(&reports))) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(panic.as_ref())),
        };
        reports.send(last(Ended { worker: index, why }));
    })?;
    Ok(Handle { orders, thread })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}
