//! An unmodified nginx with a configuration of our own: nothing of the machine's nginx is read or written.

use crate::program::{HELPER, find, run};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of one nginx.
pub struct Nginx {
    dir: PathBuf,
}

impl Nginx {
    /// Lays out `dir/NAME` with a configuration that listens on `listen` with `workers` worker processes, serves
    /// `files/` and takes uploads by PUT.
    ///
    /// # Errors
    /// When nginx is missing or can't take uploads, or the folder can't be written.
    pub fn lay_out(dir: &Path, name: &str, listen: &[SocketAddr], workers: u32) -> Result<Self> {
        let nginx = find("nginx").context("nginx is missing (package nginx-light)")?;
        let version = run(dir, Command::new(&nginx).arg("-V"), HELPER)?;
        if !version.stderr.contains("http_dav_module") {
            bail!("{} is built without http_dav_module, which takes the upload: install nginx-light", nginx.display());
        }
        let this = Self { dir: dir.join(name) };
        for folder in ["files", "body"] {
            fs::create_dir_all(this.dir.join(folder))?;
        }
        fs::write(this.files().join("index.html"), page())?;
        fs::write(this.config(), this.text(listen, workers))?;
        Ok(this)
    }

    /// Makes it a proxy for the server at `origin`. Call before it is started.
    ///
    /// # Errors
    /// When the configuration can't be written.
    pub fn pass_to(&self, origin: SocketAddr) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        let upstream = format!("  upstream origin {{ server {origin}; keepalive 16; }}\n  server {{\n");
        let location =
            "    location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\"; }";
        let text = text.replacen("  server {\n", &upstream, 1).replace("    location / { dav_methods PUT; }", location);
        fs::write(self.config(), text)?;
        Ok(())
    }

    /// Makes it go to the background by itself. Call before it is started.
    ///
    /// # Errors
    /// When the configuration can't be written.
    pub fn as_daemon(&self) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        Ok(fs::write(self.config(), text.replace("daemon off;", "daemon on;"))?)
    }

    /// Makes it one process, without a master. Call before it is started.
    ///
    /// # Errors
    /// When the configuration can't be written.
    pub fn alone(&self) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        Ok(fs::write(self.config(), text.replace("daemon off;", "daemon off;\nmaster_process off;"))?)
    }

    /// The folder that is served.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// The arguments that start it in the foreground.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let path = |p: PathBuf| p.to_string_lossy().into_owned();
        let error_log = path(self.dir.join("error.log"));
        ["-e", &error_log, "-p", &path(self.dir.clone()), "-c", &path(self.config())].map(str::to_owned).to_vec()
    }

    /// The program file.
    #[must_use]
    pub fn program() -> PathBuf {
        find("nginx").unwrap_or_else(|| "nginx".into())
    }

    /// What it complained about.
    #[must_use]
    pub fn error_log(&self) -> String {
        fs::read_to_string(self.dir.join("error.log")).unwrap_or_default()
    }

    fn config(&self) -> PathBuf {
        self.dir.join("nginx.conf")
    }

    fn text(&self, listen: &[SocketAddr], workers: u32) -> String {
        let dir = self.dir.display();
        // Started by root, nginx gives its workers to `nobody`, who may not read a private temporary folder.
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let mut sockets = String::new();
        for address in listen {
            let only = if address.is_ipv6() { " ipv6only=on" } else { "" };
            let _ = writeln!(sockets, "    listen {address}{only};");
        }
        format!(
            "{user}daemon off;
worker_processes {workers};
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  client_max_body_size 300m;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/body;
  fastcgi_temp_path {dir}/body;
  uwsgi_temp_path {dir}/body;
  scgi_temp_path {dir}/body;
  server {{
{sockets}    root {dir}/files;
    location / {{ dav_methods PUT; }}
  }}
}}
"
        )
    }
}

/// The page of the demo and of the load: 612 bytes, as large as the page that nginx brings along.
#[must_use]
pub fn page() -> String {
    let mut page = String::from("<!DOCTYPE html><title>Sidestep</title><p>Served past the kernel's stack.</p>\n");
    page.push_str("<!--");
    while page.len() < 612 - 4 {
        page.push('.');
    }
    page.push_str("-->\n");
    page
}
