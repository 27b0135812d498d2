//! Where code lies, and the pieces of it that can't be written in Rust.

use core::ffi::{c_int, c_void};

/// Addresses of the instructions of a library: first and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    pub start: usize,
    pub len: usize,
}

impl Text {
    pub const fn contains(self, address: usize) -> bool {
        address.wrapping_sub(self.start) < self.len
    }

    /// The smallest range with both in it.
    pub fn with(self, other: Self) -> Self {
        let start = self.start.min(other.start);
        let end = (self.start + self.len).max(other.start + other.len);
        Self { start, len: end - start }
    }
}

/// The executable segment in which `address` lies.
pub fn text_around(address: usize) -> Option<Text> {
    struct Search {
        address: usize,
        found: Option<Text>,
    }
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr's word, and the search below.
        let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
        for n in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: so many headers are there.
            let header = unsafe { &*info.dlpi_phdr.add(n) };
            let text = Text { start: info.dlpi_addr as usize + header.p_vaddr as usize, len: header.p_memsz as usize };
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 && text.contains(search.address) {
                search.found = Some(text);
                return 1;
            }
        }
        0
    }
    let mut search = Search { address, found: None };
    // SAFETY: `look` keeps to what it is given.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

/// Whether the main program is Go's: the linker of Go leaves a note of its own in every program.
pub fn is_go() -> bool {
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: dl_iterate_phdr's word, and the variable below.
        let (info, found) = unsafe { (&*info, &mut *data.cast::<bool>()) };
        for n in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: so many headers are there.
            let header = unsafe { &*info.dlpi_phdr.add(n) };
            if header.p_type != libc::PT_NOTE || header.p_memsz < 16 {
                continue;
            }
            let at = (info.dlpi_addr as usize + header.p_vaddr as usize) as *const u8;
            // SAFETY: a segment of the running program; its length was checked.
            let note = unsafe { core::slice::from_raw_parts(at, header.p_memsz as usize) };
            *found |= has_note_of(note, b"Go\0\0");
        }
        // The main program comes first; no other is asked.
        1
    }
    let mut found = false;
    // SAFETY: as above.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut found).cast()) };
    found
}

/// Whether one of the notes, elf(5), is from `owner`.
fn has_note_of(mut notes: &[u8], owner: &[u8]) -> bool {
    let word = |b: &[u8]| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize;
    while notes.len() >= 12 {
        let (name, content) = (word(notes), word(&notes[4..]));
        if notes[12..].get(..name) == Some(owner) {
            return true;
        }
        let whole = 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
        notes = notes.get(whole..).unwrap_or_default();
    }
    false
}

// Two words of each thread. The model that the library's place at the start of the program allows: no call, no
// allocation, so that they may be read inside a signal handler of a thread that is being born.
core::arch::global_asm!(
    ".pushsection .tbss.sidestep,\"awT\",@nobits",
    ".balign 8",
    ".globl sidestep_selector",
    ".hidden sidestep_selector",
    ".type sidestep_selector,@object",
    ".size sidestep_selector, 8",
    "sidestep_selector: .zero 8",
    ".globl sidestep_back",
    ".hidden sidestep_back",
    ".type sidestep_back,@object",
    ".size sidestep_back, 8",
    "sidestep_back: .zero 8",
    ".popsection",
);

/// This thread's selector: the kernel reads the first byte. The second is ours.
#[unsafe(naked)]
pub extern "C" fn selector() -> *mut u8 {
    core::arch::naked_asm!("mov rax, qword ptr [rip + sidestep_selector@gottpoff]", "add rax, qword ptr fs:[0]", "ret",);
}

/// Where [`repeat_shared`] goes on.
#[unsafe(naked)]
pub extern "C" fn back() -> *mut usize {
    core::arch::naked_asm!("mov rax, qword ptr [rip + sidestep_back@gottpoff]", "add rax, qword ptr fs:[0]", "ret",);
}

/// Makes the system call in the registers and goes back to where it came from: the address lies on the stack, 128 bytes
/// (which the calling convention lets functions use below their stack) under where the stack was.
#[unsafe(naked)]
pub extern "C" fn repeat() {
    core::arch::naked_asm!("syscall", "ret 128");
}

/// Bytes that [`repeat`] wants below the stack pointer.
pub const REPEAT_BYTES: usize = 128 + 8;

/// The same for calls after which two threads run on this stack, or one on another: the address is the thread's.
/// A call leaves rcx undefined.
#[unsafe(naked)]
pub extern "C" fn repeat_shared() {
    core::arch::naked_asm!("syscall", "mov rcx, qword ptr [rip + sidestep_back@gottpoff]", "jmp qword ptr fs:[rcx]",);
}

/// The end of a signal handler. Unwinders know it by these very bytes.
#[unsafe(naked)]
pub extern "C" fn restorer() {
    core::arch::naked_asm!(".byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0", "syscall", "nop");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_around_code_and_not_around_data() {
        let own = text_around(restorer as *const () as usize).expect("text");
        assert!(own.contains(repeat as *const () as usize));
        let local = 0u8;
        assert_eq!(text_around((&raw const local) as usize), None);
        let both = own.with(Text { start: own.start + own.len + 10, len: 5 });
        assert_eq!(both, Text { start: own.start, len: own.len + 15 });
    }

    #[test]
    fn each_thread_has_its_own_words() {
        let mine = selector() as usize;
        let other = std::thread::spawn(|| selector() as usize).join().unwrap();
        assert_ne!(mine, other);
        // SAFETY: this thread's word.
        assert_eq!(unsafe { *selector() }, 0);
    }

    #[test]
    fn notes_tell_their_owner() {
        let mut notes = Vec::new();
        for (name, content) in [(&b"GNU\0"[..], 5usize), (b"Go\0\0", 3)] {
            notes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
            notes.extend_from_slice(&(content as u32).to_ne_bytes());
            notes.extend_from_slice(&4u32.to_ne_bytes());
            notes.extend_from_slice(name);
            notes.resize(notes.len() + content.next_multiple_of(4), 7);
        }
        assert!(has_note_of(&notes, b"Go\0\0") && has_note_of(&notes, b"GNU\0"));
        assert!(!has_note_of(&notes, b"stap") && !has_note_of(&[0xff; 40], b"Go\0\0"));
        assert!(!is_go());
    }
}
