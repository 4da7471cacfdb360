//! Worker threads and how they and the control thread speak: a channel each way, with a waker for
//! the mio loop at its end.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use mio::{Registry, Token, Waker};

/// The sending end of a thread's inbox. Clones send to the same thread.
#[derive(Debug)]
pub struct Outbox<M> {
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
    pub fn send(&self, message: M) {
        if self.sender.send(message).is_ok()
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "a thread cannot be woken");
        }
    }
}

/// An inbox for the loop that polls `registry`, which wakes with `token` when a message is there.
pub fn inbox<M>(registry: &Registry, token: Token) -> io::Result<(Outbox<M>, Receiver<M>)> {
    let waker = Arc::new(Waker::new(registry, token)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Outbox { sender, waker }, receiver))
}

/// A running worker.
#[derive(Debug)]
pub struct Handle<M> {
    /// How it is told something.
    pub orders: Outbox<M>,
    thread: JoinHandle<()>,
}

impl<M> Handle<M> {
    /// Waits until the worker has ended.
    pub fn join(self) {
        // A panic of the worker was caught in the thread and told.
        let _ = self.thread.join();
    }
}

/// Starts the thread `worker-<index>`, which runs `body` and then tells what ended it: nothing if
/// it was told to, else an error or a panic.
pub fn spawn<M, B, T>(index: u16, orders: Outbox<M>, body: B, tell: T) -> io::Result<Handle<M>>
where
    B: FnOnce() -> io::Result<()> + Send + 'static,
    T: FnOnce(Option<String>) + Send + 'static,
{
    let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        tell(match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic_text(panic.as_ref())),
        });
    })?;
    Ok(Handle { orders, thread })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}
