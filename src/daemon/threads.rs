//! The threads of a program and how they and the control thread speak: a channel each way, with a waker for
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

/// A running thread.
#[derive(Debug)]
pub(super) struct Handle<M> {
    /// How it is told something.
    pub(super) orders: Outbox<M>,
    thread: JoinHandle<()>,
}

/// Gives all these threads their last order, and waits until they have ended.
pub(super) fn end<M>(threads: impl IntoIterator<Item = Handle<M>>, last: impl Fn() -> M) {
    let threads: Vec<_> = threads.into_iter().inspect(|thread| thread.orders.send(last())).collect();
    for Handle { thread, .. } in threads {
        // A panic was caught in the thread and told.
        let _ = thread.join();
    }
}

/// What a thread's last report says: it has ended, by order or for a reason.
#[derive(Debug)]
pub(super) struct Ended {
    thread: String,
    why: Option<String>,
}

impl Ended {
    /// The failure that it is if no order was given, with what to do.
    pub(super) fn failure(self, remedy: &str) -> Failure {
        let Self { thread, why } = self;
        let why = why.unwrap_or_else(|| "without a reason".to_owned());
        Failure::new(Code::Software, format_args!("the thread {thread} has ended: {why}; {remedy}"))
    }
}

/// The name of a worker's thread.
pub(super) fn worker(index: u16) -> String {
    format!("worker-{index}")
}

/// Starts the thread `name`, which runs `body`. What ended it, if not an order, is an error or
/// a panic: its last report says so.
pub(super) fn spawn<M, R: Send + 'static>(
    name: String,
    orders: Outbox<M>,
    reports: Outbox<R>,
    last: fn(Ended) -> R,
    body: impl FnOnce(&Outbox<R>) -> io::Result<()> + Send + 'static,
) -> io::Result<Handle<M>> {
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        let why = match catch_unwind(AssertUnwindSafe(|| body(&reports))) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(panic.as_ref())),
        };
        reports.send(last(Ended { thread: name, why }));
    })?;
    Ok(Handle { orders, thread })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use mio::Poll;

    use super::*;

    #[test]
    fn whatever_ends_a_thread_is_its_last_report() {
        let (theirs, poll) = (Poll::new().expect("poll"), Poll::new().expect("poll"));
        let (orders, _inbox) = inbox::<()>(theirs.registry(), Token(0)).expect("a waker");
        let (reports, told) = inbox(poll.registry(), Token(0)).expect("a waker");
        let start = |name: &str, body: fn() -> io::Result<()>| {
            spawn(name.to_owned(), orders.clone(), reports.clone(), |ended| ended, move |_| body())
                .expect("started")
        };
        let failing = start("failing", || Err(io::ErrorKind::BrokenPipe.into()));
        end([failing], || ());
        let panicking = start("panicking", || panic!("on purpose"));
        end([panicking], || ());
        let messages = told.try_iter().map(|ended| ended.failure("restart it").message);
        assert_eq!(
            messages.collect::<Vec<_>>(),
            [
                "the thread failing has ended: broken pipe; restart it",
                "the thread panicking has ended: panic: on purpose; restart it",
            ]
        );
    }
}
