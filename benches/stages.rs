//! Each stage of a packet's way alone: `cargo bench`. `cargo xtask counts` counts instructions of the same stages.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sidestep::bench::stages::STAGES;

/// Times to one sample's call: the call through the box then costs nothing that shows.
const BATCH: u64 = 64;

fn stages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(BATCH));
    for stage in STAGES {
        let mut run = stage.ready().unwrap_or_else(|e| panic!("{}: {e:#}", stage.name));
        group.bench_function(stage.name, |bencher| {
            bencher.iter(|| run(BATCH).unwrap_or_else(|e| panic!("{}: {e:#}", stage.name)));
        });
    }
    group.finish();
}

criterion_group!(benches, stages);
criterion_main!(benches);
