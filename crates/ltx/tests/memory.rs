//! No file can make the decoder take more memory than a few LZ4 blocks, whatever sizes it announces.

mod forge;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use forge::header;
use ltx::{Header, PageSize, verify};

/// Counts what is allocated, and remembers the most.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn most(file: &[u8]) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    verify(file).unwrap_err();
    MOST.load(Ordering::Relaxed) - before
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn sizes_in_a_file_are_not_believed() {
    let huge = Header {
        page_size: PageSize::MAX,
        ..header(1, u64::MAX, u32::MAX)
    };
    assert!(most(&huge.encode()) < 1 << 20);

    let compressed = Header {
        compressed: true,
        ..huge
    }
    .encode();
    // A descriptor of 4 MiB blocks, and one with a content size.
    let descriptors = [
        &[0x60, 0x70, 0x73][..],
        &[0x68, 0x70, 255, 255, 255, 255, 255, 255, 255, 255, 0x87],
    ];
    let mut reached_blocks = 0;
    for descriptor in descriptors {
        for length in [1u32, 4 << 20, (4 << 20) + 1, u32::MAX >> 1, u32::MAX, 1 << 31] {
            let magic = [0x04, 0x22, 0x4d, 0x18];
            let mut file = [&compressed[..], &magic, descriptor, &length.to_le_bytes()].concat();
            file.extend([0xff; 100]);
            let most = most(&file);
            assert!(most < 9 << 20, "{most} bytes for a block of {length}");
            reached_blocks += usize::from(most > 4 << 20);
        }
    }
    assert!(reached_blocks > 0, "no descriptor was accepted");
}
