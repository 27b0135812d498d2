//! Atomics: the machine's, or loom's when its model checker runs (`RUSTFLAGS="--cfg loom"`).

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::Ordering;
#[cfg(loom)]
pub use model::{AtomicU32, AtomicU64};

/// loom takes a sequentially consistent load or store for an acquiring or releasing one; only fences are modelled in
/// full. So a fence goes before and after each such access here. Hardware orders these accesses among each other just
/// so; what the model adds, order towards weaker accesses nearby, nothing in this crate rests on.
#[cfg(loom)]
mod model {
    use loom::sync::atomic::{self, Ordering, fence};

    fn around<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
        let full = order == Ordering::SeqCst;
        if full {
            fence(Ordering::SeqCst);
        }
        let result = access();
        if full {
            fence(Ordering::SeqCst);
        }
        result
    }

    macro_rules! wrapper {
        ($name:ident, $number:ty) => {
            #[derive(Debug, Default)]
            pub struct $name(atomic::$name);

            impl $name {
                pub fn new(value: $number) -> Self {
                    Self(atomic::$name::new(value))
                }
                pub fn load(&self, order: Ordering) -> $number {
                    around(order, || self.0.load(order))
                }
                pub fn store(&self, value: $number, order: Ordering) {
                    around(order, || self.0.store(value, order))
                }
                pub fn swap(&self, value: $number, order: Ordering) -> $number {
                    around(order, || self.0.swap(value, order))
                }
                pub fn fetch_or(&self, value: $number, order: Ordering) -> $number {
                    around(order, || self.0.fetch_or(value, order))
                }
                pub fn fetch_and(&self, value: $number, order: Ordering) -> $number {
                    around(order, || self.0.fetch_and(value, order))
                }
                pub fn fetch_add(&self, value: $number, order: Ordering) -> $number {
                    around(order, || self.0.fetch_add(value, order))
                }
                pub fn compare_exchange(
                    &self,
                    current: $number,
                    new: $number,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$number, $number> {
                    around(success, || self.0.compare_exchange(current, new, success, failure))
                }
            }
        };
    }

    wrapper!(AtomicU32, u32);
    wrapper!(AtomicU64, u64);
}
