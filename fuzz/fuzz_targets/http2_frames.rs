//! HTTP/2 frames counted: where chunks are cut changes nothing. The first byte is the size of the chunks.
#![no_main]

use isthmus::wire::http2_frames::Frames;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let (mut whole, mut cut_up) = (Frames::default(), Frames::default());
    let at_once = whole.feed(bytes);
    let (mut resets, mut control) = (0, 0);
    for chunk in bytes.chunks(usize::from(*cut) + 1) {
        let counts = cut_up.feed(chunk);
        resets += counts.resets;
        control += counts.control;
    }
    assert_eq!((resets, control), (at_once.resets, at_once.control));
    assert_eq!((cut_up.in_head(), cut_up.begun()), (whole.in_head(), whole.begun()));
});
