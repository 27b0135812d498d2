//! Programs that people run, unchanged: each as a server on Sidestep with a client on the kernel, and the other way
//! round where it has both sides. docs/PROGRAMS.md is the list for readers.

use super::server::{iperf3_listen, iperf3_to};
use super::{CURL, LONG, OURS, PEER, Pair, SHORT, at, case, python, serves};
use crate::engine::{Engine, Setup};
use crate::files::{HUNDRED_MB, sha256, write_random};
use crate::harness::{Case, Options, Verdict};
use crate::program::{HELPER, Program, TRANSFER, find};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

pub const CASES: &[Case] = &[
    case("programs::haproxy", &["haproxy", "curl", "ab"], SHORT, haproxy),
    case("programs::memcached", &["memcached"], SHORT, memcached),
    case("programs::node", &["node"], SHORT, node),
    case("programs::java", &["java", "javac"], LONG, java),
    case("programs::openssl", &["openssl", "curl"], SHORT, openssl),
    case("programs::wget", &["wget"], SHORT, wget),
    case("programs::curl_parallel", &["curl"], SHORT, curl_parallel),
    case("programs::socat", &["socat"], SHORT, socat),
    case("programs::sockperf", &["sockperf"], SHORT, sockperf),
    case("programs::iperf3_eight_streams", &["iperf3"], SHORT, iperf3_eight_streams),
    case("programs::dnsmasq_and_dig", &["dnsmasq", "dig"], SHORT, dnsmasq_and_dig),
    case("programs::python_servers", &[], SHORT, python_servers),
    case("programs::redis_benchmark", &["redis-server", "redis-benchmark"], SHORT, redis_benchmark),
    case("programs::openssh", &["sshd", "ssh", "sftp", "ssh-keygen"], LONG, openssh),
    case("programs::postgresql", &["setpriv"], LONG, postgresql),
];

/// Who serves whom: a program on Sidestep and one on the kernel, in either role.
struct Roles<'a> {
    pair: &'a Pair,
    engine: &'a Engine<'a>,
    sidestep_serves: bool,
}

impl Roles<'_> {
    /// Runs `test` once in each direction.
    fn both(name: &str, test: impl Fn(&Roles<'_>) -> Result<()>) -> Result<Verdict> {
        for sidestep_serves in [true, false] {
            let pair = Pair::new(name)?;
            let engine = pair.engine(&Setup::default())?;
            let roles = Roles { pair: &pair, engine: &engine, sidestep_serves };
            test(&roles).with_context(|| if sidestep_serves { "server on Sidestep" } else { "client on Sidestep" })?;
        }
        Ok(Verdict::Passed)
    }

    fn address(&self) -> &'static str {
        if self.sidestep_serves { OURS[0] } else { PEER[0] }
    }

    fn at(&self, port: u16) -> SocketAddr {
        at(self.address(), port)
    }

    fn server(&self, program: &str) -> Command {
        if self.sidestep_serves { self.engine.command(program) } else { self.pair.b().command(program) }
    }

    fn client(&self, program: &str) -> Command {
        if self.sidestep_serves { self.pair.b().command(program) } else { self.engine.command(program) }
    }

    /// Starts a server and waits until it takes connections at `port`.
    fn serve(&self, name: &str, command: &mut Command, port: u16) -> Result<Program> {
        let mut server = self.pair.lab.start(name, command)?;
        serves(&mut server, self.pair.b(), self.at(port))?;
        Ok(server)
    }
}

/// Four threads; what clients ask for on Sidestep comes from a server on the kernel.
fn haproxy(options: &Options) -> Result<Verdict> {
    let pair = Pair::new("haproxy")?;
    let engine = pair.engine(&Setup::default())?;
    let page = pair.lab.file("page");
    write_random(&page, 70_000, 31)?;
    let mut line = pair.b().command(python());
    line.args(["-m", "http.server", "8001", "--bind", PEER[0], "--directory"]).arg(pair.lab.dir());
    let mut origin = pair.lab.start("origin", &mut line)?;
    serves(&mut origin, pair.b(), at(PEER[0], 8001))?;
    let config = pair.lab.file("haproxy.cfg");
    let timeouts = " timeout connect 10s\n timeout client 30s\n timeout server 30s";
    fs::write(
        &config,
        format!(
            "global\n nbthread 4\n maxconn 1000\ndefaults\n mode http\n{timeouts}\nfrontend f\n bind {}:8000\n bind \
             [{}]:8000\n default_backend b\nbackend b\n server s {}:8001\n",
            OURS[0], OURS[1], PEER[0]
        ),
    )?;
    let mut proxy = pair.lab.start("haproxy", engine.command("haproxy").arg("-db").arg("-f").arg(&config))?;
    for address in OURS {
        serves(&mut proxy, pair.b(), at(address, 8000))?;
        let copy = pair.lab.file("copy");
        let mut get = pair.b().command("curl");
        get.args(CURL).arg("-o").arg(&copy).arg(format!("http://{}/page", at(address, 8000)));
        pair.must(&mut get)?;
        ensure!(sha256(&copy)? == sha256(&page)?, "what haproxy at {address} passed on is not the page");
    }
    let requests = if options.quick { "300" } else { "2000" };
    let url = format!("http://{}/page", at(OURS[0], 8000));
    let said = pair.lab.must(pair.b().command("ab").args(["-q", "-n", requests, "-c", "20", &url]), TRANSFER)?;
    let field = |name: &str| said.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    ensure!(field("Complete requests:") == Some(requests), "{said}");
    ensure!(field("Failed requests:") == Some("0"), "{said}");
    Ok(Verdict::Passed)
}

fn memcached(_: &Options) -> Result<Verdict> {
    Roles::both("memcached", |roles| {
        let mut line = roles.server("memcached");
        line.args(["-u", "root", "-t", "4", "-l", roles.address(), "-p", "11211"]);
        let _server = roles.serve("memcached", &mut line, 11211)?;
        let script = include_str!("../programs/memcached.py");
        let said = roles.pair.must(roles.client(python()).args(["-c", script, roles.address()]))?;
        ensure!(said.trim() == "4800 stored and fetched", "{said}");
        Ok(())
    })
}

fn node(_: &Options) -> Result<Verdict> {
    Roles::both("node", |roles| {
        let server = include_str!("../programs/http_server.js");
        let mut line = roles.server("node");
        let _server = roles.serve("node", line.args(["-e", server, "--", "x", roles.address()]), 8000)?;
        let client = include_str!("../programs/http_client.js");
        let url = format!("http://{}", roles.at(8000));
        let said = roles.pair.must(roles.client("node").args(["-e", client, "--", "x", &url]))?;
        ensure!(said.trim() == "200 answered", "{said}");
        Ok(())
    })
}

fn java(_: &Options) -> Result<Verdict> {
    Roles::both("java", |roles| {
        let classes = roles.pair.lab.file("classes");
        let sources = [
            ("Server.java", include_str!("../programs/Server.java")),
            ("Client.java", include_str!("../programs/Client.java")),
        ];
        let mut compile = Command::new("javac");
        compile.arg("-d").arg(&classes);
        for (name, text) in sources {
            let file = roles.pair.lab.file(name);
            fs::write(&file, text)?;
            compile.arg(file);
        }
        roles.pair.lab.must(&mut compile, TRANSFER)?;
        let run = |mut command: Command, class: &str, argument: &str| {
            command.arg("-cp").arg(&classes).args([class, argument]);
            command
        };
        let mut line = run(roles.server("java"), "Server", roles.address());
        let _server = roles.serve("java", &mut line, 8000)?;
        let mut line = run(roles.client("java"), "Client", &format!("http://{}", roles.at(8000)));
        let said = roles.pair.lab.must(&mut line, TRANSFER)?;
        ensure!(said.trim() == "150 answered", "{said}");
        Ok(())
    })
}

/// A certificate for itself and its key, as files.
fn certificate(pair: &Pair) -> Result<[String; 2]> {
    let [key, certificate] = ["key.pem", "certificate.pem"].map(|f| pair.lab.file(f).display().to_string());
    let mut line = Command::new("openssl");
    line.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=sidestep"]);
    pair.must(line.args(["-keyout", &key, "-out", &certificate]))?;
    Ok([key, certificate])
}

fn openssl(_: &Options) -> Result<Verdict> {
    Roles::both("openssl", |roles| {
        let [key, certificate] = certificate(roles.pair)?;
        let server = roles.at(4433).to_string();
        let mut line = roles.server("openssl");
        line.args(["s_server", "-quiet", "-WWW", "-accept", &server, "-key", &key, "-cert", &certificate]);
        let big = roles.pair.lab.file("big");
        write_random(&big, 3_000_000, 32)?;
        let _server = roles.serve("s_server", line.current_dir(roles.pair.lab.dir()), 4433)?;
        let copy = roles.pair.lab.file("copy");
        let mut get = roles.client("curl");
        get.args(CURL).args(["--http0.9", "-k", "-o"]).arg(&copy).arg(format!("https://{server}/big"));
        roles.pair.must(&mut get)?;
        ensure!(sha256(&copy)? == sha256(&big)?, "what came over TLS is not what was sent");
        let question = roles.pair.lab.file("question");
        fs::write(&question, "GET /question HTTP/1.0\r\n\r\n")?;
        let mut line = roles.client("openssl");
        line.args(["s_client", "-quiet", "-verify_quiet", "-ign_eof", "-connect", &server]);
        let mut client = Program::start_with_input(roles.pair.lab.dir(), "s_client", &mut line, Some(&question))?;
        let said = client.wait(HELPER)?.stdout;
        ensure!(said.ends_with("GET /question HTTP/1.0\r\n\r\n"), "s_client got {said:?}");
        Ok(())
    })
}

fn http_server(roles: &Roles<'_>, bytes: u64) -> Result<(Program, std::path::PathBuf)> {
    let big = roles.pair.lab.file("big");
    write_random(&big, bytes, 33)?;
    let mut line = roles.server(python());
    line.args(["-u", "-m", "http.server", "8000", "--bind", roles.address(), "--directory"]);
    let server = roles.serve("python", line.arg(roles.pair.lab.dir()), 8000)?;
    Ok((server, big))
}

fn wget(options: &Options) -> Result<Verdict> {
    let bytes = if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB };
    Roles::both("wget", |roles| {
        let (_server, big) = http_server(roles, bytes)?;
        let copy = roles.pair.lab.file("copy");
        let mut line = roles.client("wget");
        line.args(["-q", "--no-proxy", "--tries=1", "-O"]).arg(&copy).arg(format!("http://{}/big", roles.at(8000)));
        roles.pair.lab.must(&mut line, TRANSFER)?;
        ensure!(sha256(&copy)? == sha256(&big)?, "what wget got is not what was sent");
        Ok(())
    })
}

/// Twenty transfers in one process, all at once.
fn curl_parallel(_: &Options) -> Result<Verdict> {
    Roles::both("curlmany", |roles| {
        let (_server, big) = http_server(roles, 300_000)?;
        let mut line = roles.client("curl");
        line.args(CURL).args(["--parallel", "--parallel-max", "20"]);
        let copies: Vec<_> = (0..20).map(|i| roles.pair.lab.file(&format!("copy{i}"))).collect();
        for copy in &copies {
            line.arg("-o").arg(copy).arg(format!("http://{}/big", roles.at(8000)));
        }
        roles.pair.must(&mut line)?;
        for copy in &copies {
            ensure!(sha256(copy)? == sha256(&big)?, "{} is not what was sent", copy.display());
        }
        Ok(())
    })
}

/// A process a connection, cat behind it.
fn socat(_: &Options) -> Result<Verdict> {
    Roles::both("socat", |roles| {
        let listen = format!("TCP-LISTEN:7000,bind={},fork,reuseaddr", roles.address());
        let _server = roles.serve("socat", roles.server("socat").args([&listen, "EXEC:cat"]), 7000)?;
        let data = roles.pair.lab.file("data");
        write_random(&data, 3_000_000, 34)?;
        for number in 0..3 {
            let mut line = roles.client("socat");
            line.args(["-t10", "-", &format!("TCP:{}", roles.at(7000))]);
            let name = format!("client{number}");
            let mut client = Program::start_with_input(roles.pair.lab.dir(), &name, &mut line, Some(&data))?;
            client.wait(TRANSFER)?.ok("socat")?;
            let back = roles.pair.lab.file(&format!("{name}.out"));
            ensure!(sha256(&back)? == sha256(&data)?, "what came back from cat is not what was sent");
        }
        Ok(())
    })
}

fn sockperf(_: &Options) -> Result<Verdict> {
    Roles::both("sockperf", |roles| {
        for (port, transport) in [("6000", &["--tcp"][..]), ("6001", &[])] {
            let mut line = roles.server("sockperf");
            let name = format!("server{port}");
            let mut server = roles
                .pair
                .lab
                .start(&name, line.args(["server", "-i", roles.address(), "-p", port]).args(transport))?;
            server.wait_until("ready", HELPER, |p| p.stdout().contains("to block on socket").then_some(()))?;
            let mut line = roles.client("sockperf");
            line.args(["ping-pong", "-i", roles.address(), "-p", port, "-t", "2"]).args(transport);
            let ended = roles.pair.lab.run(&mut line, HELPER)?.ok("sockperf")?;
            ensure!(ended.stdout.contains("Summary: Latency is"), "{}", ended.stdout);
            let lost =
                ended.stdout.contains("# dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0");
            ensure!(lost, "messages were lost: {}", ended.stdout);
        }
        Ok(())
    })
}

fn iperf3_eight_streams(_: &Options) -> Result<Verdict> {
    let (pair, mut figures) = (Pair::new("iperf8")?, Vec::new());
    let engine = pair.engine(&Setup::default())?;
    for sidestep_serves in [true, false] {
        let roles = Roles { pair: &pair, engine: &engine, sidestep_serves };
        let name = if sidestep_serves { "iperf-s" } else { "iperf-k" };
        let _server = iperf3_listen(&pair, name, roles.server("iperf3"), roles.address())?;
        for direction in [&["-P", "8", "-t", "2"][..], &["-P", "8", "-t", "2", "-R"]] {
            let rate = iperf3_to(&pair.lab, roles.client("iperf3"), roles.address(), direction)?;
            figures.push(format!("{rate:.1}"));
        }
    }
    Ok(Verdict::Figure(format!("Gbit/s, server then client on Sidestep, forth and back: {}", figures.join(", "))))
}

/// Over UDP and TCP.
fn dnsmasq_and_dig(_: &Options) -> Result<Verdict> {
    Roles::both("dns", |roles| {
        let mut line = roles.server("dnsmasq");
        line.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file="]);
        line.args(["--user=root", "--bind-interfaces", "--log-facility=-", "--address=/sidestep.test/192.0.2.77"]);
        line.arg(format!("--listen-address={}", roles.address()));
        let _server = roles.serve("dnsmasq", &mut line, 53)?;
        for transport in ["+notcp", "+tcp"] {
            let mut line = roles.client("dig");
            line.args([&format!("@{}", roles.address()), "+short", "+tries=2", "+time=5", transport]);
            let said = roles.pair.must(line.arg("www.sidestep.test"))?;
            ensure!(said.trim() == "192.0.2.77", "dig {transport}: {said}");
        }
        Ok(())
    })
}

/// A process or a thread a connection, and objects over multiprocessing's connections.
fn python_servers(_: &Options) -> Result<Verdict> {
    Roles::both("pyservers", |roles| {
        let (server, client) =
            (include_str!("../programs/python_servers.py"), include_str!("../programs/python_clients.py"));
        let mut server =
            roles.pair.lab.start("servers", roles.server(python()).args(["-c", server, roles.address()]))?;
        let pid = server.wait_until("listening", HELPER, |p| {
            p.stdout().lines().find_map(|line| line.strip_prefix("listening ").map(str::to_owned))
        })?;
        let mut line = roles.client(python());
        let said = roles.pair.lab.must(line.args(["-c", client, roles.address(), &pid]), TRANSFER)?;
        ensure!(said.trim() == "all answered", "{said}; {}", server.stderr());
        Ok(())
    })
}

fn redis_benchmark(_: &Options) -> Result<Verdict> {
    Roles::both("redisbench", |roles| {
        let mut line = roles.server("redis-server");
        line.args(["--bind", roles.address(), "--port", "6379", "--save", "", "--protected-mode", "no"]);
        line.arg("--dir").arg(roles.pair.lab.dir());
        let _server = roles.serve("redis", &mut line, 6379)?;
        let mut line = roles.client("redis-benchmark");
        line.args(["-h", roles.address(), "-n", "10000", "-c", "50", "-t", "set,get,lrange_100", "--csv"]);
        let said = roles.pair.lab.must(&mut line, TRANSFER)?;
        for test in ["\"SET\"", "\"GET\"", "\"LRANGE_100"] {
            ensure!(said.lines().any(|line| line.starts_with(test)), "no {test} in {said}");
        }
        Ok(())
    })
}

/// sshd forks, executes itself and confines its children; 100 MB each way by sftp.
fn openssh(options: &Options) -> Result<Verdict> {
    Roles::both("openssh", |roles| {
        let lab = &roles.pair.lab;
        let file = |name: &str| lab.file(name).display().to_string();
        for key in ["host", "user"] {
            roles.pair.must(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &file(key)]))?;
        }
        // sshd's child goes there; Debian's service makes it.
        fs::create_dir_all("/run/sshd")?;
        let subsystem = "/usr/lib/openssh/sftp-server";
        fs::write(
            file("sshd.conf"),
            format!(
                "Port 2222\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM \
                 no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp {subsystem}\n",
                roles.address(),
                file("host"),
                file("user.pub")
            ),
        )?;
        let sshd = find("sshd").context("sshd")?.display().to_string();
        let mut line = roles.server(&sshd);
        let server = roles.serve("sshd", line.args(["-D", "-e", "-f", &file("sshd.conf")]), 2222)?;
        let mut options_of_client = vec!["-i".to_owned(), file("user"), "-F".into(), "none".into()];
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"] {
            options_of_client.extend(["-o".into(), option.to_owned()]);
        }
        let user = format!("root@{}", roles.address());
        let mut line = roles.client("ssh");
        line.args(&options_of_client).args(["-p", "2222", &user, "echo here and $((40 + 2))"]);
        let said = roles.pair.must(&mut line).with_context(|| server.stderr())?;
        ensure!(said.trim() == "here and 42", "{said}");
        let big = lab.file("big");
        write_random(&big, if options.quick { HUNDRED_MB / 10 } else { HUNDRED_MB }, 35)?;
        fs::write(file("batch"), format!("put {0} {0}.there\nget {0}.there {0}.back\n", big.display()))?;
        let mut line = roles.client("sftp");
        line.args(["-q", "-P", "2222", "-b", &file("batch")]).args(&options_of_client).arg(&user);
        lab.must(&mut line, TRANSFER).with_context(|| server.stderr())?;
        ensure!(sha256(&lab.file("big.back"))? == sha256(&big)?, "the file came back changed");
        Ok(())
    })
}

/// The newest PostgreSQL that Debian's packages put beside PATH.
fn postgres_folder() -> Option<std::path::PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin"));
    versions.filter(|bin| bin.join("pgbench").is_file() && bin.join("postgres").is_file()).max()
}

/// A process a connection, run by a plain user.
fn postgresql(_: &Options) -> Result<Verdict> {
    use std::os::unix::fs::PermissionsExt;
    let Some(bin) = postgres_folder() else { return Ok(Verdict::Skipped("PostgreSQL is missing".into())) };
    let plain = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let preload = crate::engine::binary()?.with_file_name("libsidestep_preload.so");
    let mut look = Command::new("setpriv");
    if !look.args(plain).args(["test", "-r"]).arg(&preload).status()?.success() {
        return Ok(Verdict::Skipped(format!("a plain user can't read {}", preload.display())));
    }
    Roles::both("postgres", |roles| {
        let lab = &roles.pair.lab;
        let home = lab.file("postgres");
        fs::create_dir(&home)?;
        std::os::unix::fs::chown(&home, Some(65534), Some(65534))?;
        fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o711))?;
        let data = home.join("data");
        let as_user = |mut command: Command, program: &str| {
            command.args(plain).args(["env", "LC_ALL=C", "HOME=/nonexistent"]).arg(bin.join(program));
            command
        };
        let mut line = as_user(Command::new("setpriv"), "initdb");
        line.args(["-U", "sidestep", "-A", "trust", "--no-sync", "-D"]).arg(&data).current_dir(&home);
        lab.must(&mut line, TRANSFER)?;
        let mut rules = fs::read_to_string(data.join("pg_hba.conf"))?;
        rules.push_str("host all all 10.77.0.0/24 trust\n");
        fs::write(data.join("pg_hba.conf"), rules)?;
        let listen = format!("listen_addresses={}", roles.address());
        let mut line = as_user(roles.server("setpriv"), "postgres");
        line.args(["-c", &listen, "-c", "unix_socket_directories=", "-c", "fsync=off", "-D"]).arg(&data);
        let server = roles.serve("postgres", line.current_dir(&home), 5432)?;
        let pgbench = |args: &[&str]| {
            let mut line = roles.client(&bin.join("pgbench").display().to_string());
            line.args(["-h", roles.address(), "-U", "sidestep"]).args(args).arg("postgres");
            lab.must(&mut line, TRANSFER).with_context(|| server.stderr())
        };
        pgbench(&["-i", "-q"])?;
        // Prepared statements on eight connections, then a connection a transaction.
        for args in [&["-c", "8", "-j", "2", "-t", "200", "-M", "prepared"][..], &["-c", "4", "-t", "20", "-C"]] {
            let said = pgbench(args)?;
            ensure!(said.contains("number of failed transactions: 0 "), "{said}");
        }
        Ok(())
    })
}
