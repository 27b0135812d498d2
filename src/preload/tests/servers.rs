//! Servers and load generators, unmodified, on the preload library, against an engine without a network.
#![allow(clippy::disallowed_methods, reason = "tests wait for real threads and programs")]

#[allow(dead_code, reason = "each test uses its part")]
mod loopback;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use loopback::Running;
use loopback::run::{Background, has, on, within, within_reading};

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ss-preload-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn nginx_configuration(folder: &Path, port: u16, daemon: &str) -> PathBuf {
    let folder = folder.display();
    let text = format!(
        "daemon {daemon}; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;
         events {{ worker_connections 256; }}
         http {{
           access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
           client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
           uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
           server {{ listen {port}; root {folder};
             location /hello {{ return 200 hello; }}
             location /proxy/ {{ proxy_pass http://10.9.8.7:{port}/; }} }}
         }}"
    );
    let path = PathBuf::from(format!("{folder}/nginx.conf"));
    std::fs::write(&path, text).expect("configuration");
    path
}

fn fetch(engine: &Running, url: &str) -> Vec<u8> {
    within_reading(
        on(engine, "curl").args(["-s", "--max-time", "10", url]).spawn().expect("curl"),
        Duration::from_secs(15),
    )
}

fn pid_of(folder: &Path) -> Option<i32> {
    std::fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: not within 5 s");
}

#[test]
fn nginx_with_workers_reloads_and_serves() {
    if !has("nginx") || !has("curl") {
        return;
    }
    let engine = Running::start("nginx");
    let folder = Folder::new("nginx");
    let data: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(folder.0.join("file"), &data).expect("file");
    // The workers are somebody else's processes and have to read it.
    Command::new("chmod").args(["-R", "a+rx"]).arg(&folder.0).status().expect("chmod");
    for daemon in ["off", "on"] {
        let configuration = nginx_configuration(&folder.0, 7100, daemon);
        let mut command = on(&engine, "nginx");
        command.arg("-c").arg(&configuration).stdout(Stdio::null()).stderr(Stdio::null());
        let _master = Background(command.spawn().expect("nginx"));
        wait_until("nginx writes its pid", || pid_of(&folder.0).is_some());
        std::thread::sleep(Duration::from_millis(300));
        let pid = pid_of(&folder.0).expect("pid");
        let errors = || std::fs::read_to_string(folder.0.join("error.log")).unwrap_or_default();
        for _ in 0..5 {
            assert_eq!(fetch(&engine, "http://10.9.8.7:7100/hello"), b"hello", "{}", errors());
        }
        assert!(fetch(&engine, "http://10.9.8.7:7100/file") == data, "{}", errors());
        assert!(fetch(&engine, "http://10.9.8.7:7100/proxy/file") == data, "{}", errors());
        // SAFETY: a signal to a process that this test started.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..5 {
            assert_eq!(fetch(&engine, "http://10.9.8.7:7100/hello"), b"hello", "after the reload: {}", errors());
        }
        if has("wrk") {
            let args = ["-t2", "-c20", "-d1", "http://10.9.8.7:7100/hello"];
            let out = within(on(&engine, "wrk").args(args).spawn().expect("wrk"), Duration::from_secs(20));
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(
                out.status.success() && text.contains("Requests/sec") && !text.contains("Socket errors"),
                "{out:?}"
            );
        }
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGQUIT) };
        wait_until("nginx ends", || pid_of(&folder.0).is_none());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(engine.finish(), Vec::<String>::new());
}

#[test]
fn iperf3_in_both_directions() {
    if !has("iperf3") {
        return;
    }
    let engine = Running::start("iperf3");
    let server = on(&engine, "iperf3")
        .args(["-s", "-p", "7110"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("iperf3");
    let _server = Background(server);
    std::thread::sleep(Duration::from_millis(300));
    for extra in [&["-n", "100M"][..], &["-n", "50M", "-R"], &["-u", "-b", "50M", "-t", "1"], &["-n", "20M", "-P", "3"]]
    {
        // Between two tests the server closes its listener and opens another.
        let mut tries = 0;
        loop {
            let mut command = on(&engine, "iperf3");
            command.args(["-c", "10.9.8.7", "-p", "7110"]).args(extra);
            let out = within(command.spawn().expect("iperf3"), Duration::from_secs(40));
            tries += 1;
            if out.status.success() {
                break;
            }
            let refused = String::from_utf8_lossy(&out.stderr).contains("Connection refused");
            assert!(refused && tries < 20, "{extra:?}: {out:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
