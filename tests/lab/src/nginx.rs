//! The servers: Debian's nginx, each with a prefix directory of its own, tuned for load.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::network::Role;
use crate::{processors, sys, wait};

/// The longest static body, and so the longest a GET can ask for.
pub(crate) const LONGEST_BODY: usize = 1 << 20;

/// How the server behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// The server closes a connection after this many requests.
    pub(crate) keepalive_requests: u32,
    /// How long the server keeps an idle connection.
    pub(crate) keepalive_timeout: Duration,
    /// The server waits this long before it answers; needs nginx's echo module (in Debian's nginx-light).
    pub(crate) delay: Option<Duration>,
    /// The server sends each request here as well, by nginx's mirror module.
    pub(crate) mirror: Option<SocketAddr>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            keepalive_requests: 100_000_000,
            keepalive_timeout: Duration::from_secs(600),
            delay: None,
            mirror: None,
        }
    }
}

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    prefix: PathBuf,
}

impl Nginx {
    /// Starts nginx on all addresses of a host and waits until it listens.
    pub(crate) fn start(on: &Namespace, scratch: &Path, behaviour: &Behaviour) -> Result<Self> {
        let prefix = scratch.join(format!("nginx-{}", on.name()));
        for dir in ["logs", "body", "temp"] {
            fs::create_dir_all(prefix.join(dir))?;
        }
        // The worker runs as root: nothing to chown. The static bodies are those the load generator checks against.
        let content = crate::load::content();
        for size in [100, 1_000, 10_000, 100_000, LONGEST_BODY] {
            fs::write(prefix.join(format!("f{size}")), content.get(..size).unwrap_or(content))?;
        }
        fs::write(prefix.join("nginx.conf"), configuration(behaviour))?;
        fs::write(prefix.join("logs/access.log"), "")?;
        let mut nginx = Self { child: Self::spawn(on, &prefix)?, prefix };
        nginx.wait_listening(on)?;
        Ok(nginx)
    }

    /// The process id of the master; the worker is its child.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as an operator does: the connections it has are closed.
    pub(crate) fn stop(&mut self) -> Result<()> {
        sys::signal(self.child.id(), sys::Signal::Term)?;
        wait::until(Duration::from_secs(5), "nginx ends", || Ok(self.child.try_wait()?.is_some()))
    }

    /// Starts it again after [`Nginx::stop`], on the same host; its logs go on.
    pub(crate) fn start_again(&mut self, on: &Namespace) -> Result<()> {
        self.child = Self::spawn(on, &self.prefix)?;
        self.wait_listening(on)
    }

    fn spawn(on: &Namespace, prefix: &Path) -> Result<Child> {
        let mut command = on.command("nginx");
        if !on.name().starts_with(Role::Online.name()) {
            processors::away_from_production(&mut command);
        }
        command
            // The path of a UNIX socket may be short only: the configuration's is relative to this directory.
            .current_dir(prefix)
            .arg("-p")
            .arg(prefix)
            .args(["-e", "logs/error.log", "-c", "nginx.conf"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(prefix.join("logs/start.log"))?)
            .spawn()
            .context("cannot run nginx (Debian package nginx-light)")
    }

    fn wait_listening(&mut self, on: &Namespace) -> Result<()> {
        wait::until(Duration::from_secs(10), &format!("nginx on {} listens", on.name()), || {
            if let Some(status) = self.child.try_wait()? {
                let said = fs::read_to_string(self.prefix.join("logs/start.log"))?;
                bail!("nginx on {} ended with {status}: {}", on.name(), said.trim());
            }
            on.enter(|| std::net::TcpStream::connect(("127.0.0.1", crate::network::PORT)).is_ok())
        })
    }

    /// The log of GETs and small requests; see [`crate::records`].
    pub(crate) fn access_log(&self) -> PathBuf {
        self.prefix.join("logs/access.log")
    }

    /// The log of uploads, whose bodies wait as files in the `body` folder of its prefix.
    pub(crate) fn upload_log(&self) -> PathBuf {
        self.prefix.join("logs/upload.log")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // TERM lets the master end its workers; KILL follows if it does not.
        let _ = sys::signal(self.child.id(), sys::Signal::Term);
        let ended =
            wait::until(Duration::from_secs(5), "nginx ends", || Ok(self.child.try_wait()?.is_some()));
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn configuration(behaviour: &Behaviour) -> String {
    let Behaviour { keepalive_requests, keepalive_timeout, delay, mirror } = behaviour;
    let timeout = keepalive_timeout.as_secs();
    let load = if delay.is_some() { "load_module modules/ngx_http_echo_module.so;" } else { "" };
    let load = load.replace("modules/", "/usr/lib/nginx/modules/");
    let sleep = delay.map(sleeping).unwrap_or_default();
    let copy = if mirror.is_some() { "mirror /mirror;" } else { "" };
    let mirror = mirror.map(mirroring).unwrap_or_default();
    format!(
        r#"{load}
daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid logs/nginx.pid;
error_log logs/error.log warn;
events {{ worker_connections 32768; multi_accept on; }}
http {{
  access_log off;
  # id status body-bytes request-bytes complete peer-address peer-port body-file
  log_format lab '$arg_id $status $body_bytes_sent $request_length $request_completion- '
                 '$remote_addr $remote_port $request_body_file-';
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  open_file_cache max=100;
  server_tokens off;
  etag off;
  default_type text/plain;
  keepalive_requests {keepalive_requests};
  keepalive_timeout {timeout}s;
  client_max_body_size 16m;
  client_body_buffer_size 64k;
  client_body_temp_path body;
  proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
  server {{
    listen 80 backlog=65535 default_server;
    listen [::]:80 backlog=65535 default_server;
    listen 81 backlog=65535;
    listen [::]:81 backlog=65535;
    root .;
    location / {{ {copy} access_log logs/access.log lab buffer=32k flush=100ms; }}
    {sleep}
    {mirror}
    # The whole body goes to a file, which the laboratory hashes and removes.
    location /upload {{
      {copy}
      access_log logs/upload.log lab;
      client_body_in_file_only on;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
      proxy_http_version 1.1;
      proxy_pass http://unix:logs/inner.sock:/;
    }}
  }}
  server {{ listen unix:logs/inner.sock; access_log off; location / {{ return 200 "received"; }} }}
}}
"#
    )
}

/// The locations of static bodies that come after a delay.
fn sleeping(delay: Duration) -> String {
    format!(
        "location /f {{ echo_sleep {:.3}; echo_exec /file$uri $args; }}
    location /file/ {{ internal; alias ./; access_log logs/access.log lab buffer=32k flush=100ms; }}",
        delay.as_secs_f64()
    )
}

/// The location that sends each request to another server as well.
fn mirroring(to: SocketAddr) -> String {
    format!(
        "location = /mirror {{
      internal;
      proxy_pass http://{to}$request_uri;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection \"\";
    }}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_loads_the_module_that_sleeps() {
        let slow = Behaviour { delay: Some(Duration::from_millis(50)), ..Behaviour::default() };
        assert!(configuration(&slow).contains("echo_sleep 0.050"));
        assert!(!configuration(&Behaviour::default()).contains("echo"));
    }

    #[test]
    fn a_mirror_takes_every_request() {
        let to = "10.91.2.2:80".parse().ok();
        let mirrored = configuration(&Behaviour { mirror: to, ..Behaviour::default() });
        assert_eq!(mirrored.matches("mirror /mirror;").count(), 2, "{mirrored}");
        assert!(mirrored.contains("proxy_pass http://10.91.2.2:80$request_uri;"));
        assert!(!configuration(&Behaviour::default()).contains("mirror"));
    }
}
