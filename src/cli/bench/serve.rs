//! `sidestep bench serve`.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use anyhow::Context;
use clap::Args;
use sidestep::bench::net::Net;
use sidestep::bench::serve::{ROLES, Role, Server};

use super::{Stack, StackArgs, address, stop_on_signals};
use crate::cli::{Failure, print, start_log};

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// Address and first of five ports
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7700")]
    listen: String,
    /// Threads, each with listeners of its own on the same ports
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
}

pub fn main(args: &ServeArgs) -> Result<ExitCode, Failure> {
    start_log("warn");
    args.stack.check()?;
    let base = address(&args.listen)?;
    if base.port().checked_add(ROLES.len() as u16 - 1).is_none() {
        return Err(Failure::usage(format!("port {}: four more must follow it", base.port())));
    }
    let stop = stop_on_signals()?;
    let served = match args.stack.stack {
        Stack::Kernel => serve(args, base, &args.stack.kernel(), &stop),
        Stack::Sidestep => serve(args, base, &args.stack.engine()?, &stop),
        Stack::Library => {
            let library = args.stack.library()?;
            serve(args, base, &args.stack.on_library(&library), &stop)
        }
    };
    served.map(|()| ExitCode::SUCCESS).context("bench serve").map_err(Into::into)
}

fn serve<N: Net>(
    args: &ServeArgs,
    base: SocketAddr,
    net: &(impl Fn() -> io::Result<N> + Sync),
    stop: &AtomicBool,
) -> io::Result<()> {
    let (sender, outcomes) = channel::<io::Result<bool>>();
    std::thread::scope(|scope| {
        for number in 0..args.threads as usize {
            let core = args.stack.cores.get(number % args.stack.cores.len().max(1)).copied();
            let sender = sender.clone();
            scope.spawn(move || {
                let work = || -> io::Result<()> {
                    if let Some(id) = core {
                        core_affinity::set_for_current(core_affinity::CoreId { id });
                    }
                    let mut server = Server::new(net()?, base)?;
                    let _ = sender.send(Ok(true));
                    server.run(stop)
                };
                let _ = sender.send(work().map(|()| false));
            });
        }
        drop(sender);
        let mut ready = 0;
        for outcome in outcomes {
            match outcome {
                Ok(true) => {
                    ready += 1;
                    if ready == args.threads {
                        let last = Role::Once.at(base);
                        let name = args.stack.stack.name();
                        print(&format!(
                            "sidestep bench: serving on the {name} stack at {base} to port {}\n",
                            last.port()
                        ));
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    stop.store(true, Ordering::Release);
                    return Err(error);
                }
            }
        }
        Ok(())
    })
}
