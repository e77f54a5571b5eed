//! Compaction: several consecutive files become one with the same effect.

use std::io::{Read, Write};

use sqlite_format::Pgno;

use crate::decode::Decoder;
use crate::encode::Encoder;
use crate::error::{CompactError, Error};
use crate::header::{Header, Trailer};
use crate::verify::Summary;

/// Choices about the output.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompactOptions {
    pub compressed: bool,
    /// Written into the header; LiteFS leaves it 0.
    pub node_id: u64,
}

/// One input with its next page.
struct Input<R> {
    decoder: Decoder<R>,
    next: Option<Pgno>,
    page: Vec<u8>,
    /// Smallest size of the database after any later input: pages beyond were cut off.
    later_commit: u32,
}

/// Merges `inputs`, which must be consecutive files in order, into one. Every input is verified to its end, and that each leaves
/// the database the next one expects, before the output gets its trailer; after an error the output is worthless.
pub fn compact<R: Read, W: Write>(
    inputs: impl IntoIterator<Item = R>,
    writer: W,
    options: CompactOptions,
) -> Result<(W, Summary), Error> {
    let mut inputs = open(inputs)?;
    let header = output_header(&inputs, options)?;
    let mut encoder = Encoder::new(writer, header.clone())?;
    let mut growth = Growth::new(&inputs, &header);
    let mut pages = 0;
    while let Some((pgno, newest)) = next_page(&inputs) {
        if pgno.get() <= inputs[newest].later_commit {
            growth.page(pgno)?;
            encoder.encode_page(pgno, &inputs[newest].page)?;
            pages += 1;
        }
        for input in inputs.iter_mut().filter(|input| input.next == Some(pgno)) {
            input.next = input.decoder.next_page(&mut input.page)?;
        }
    }
    growth.end()?;
    let last = finish(inputs)?;
    let (writer, trailer) = encoder.finish(last.post_apply)?;
    Ok((
        writer,
        Summary {
            header,
            trailer,
            pages,
        },
    ))
}

fn open<R: Read>(readers: impl IntoIterator<Item = R>) -> Result<Vec<Input<R>>, Error> {
    let mut inputs = Vec::new();
    for reader in readers {
        let mut decoder = Decoder::new(reader)?;
        let mut page = vec![0; decoder.header().page_size.bytes()];
        let next = decoder.next_page(&mut page)?;
        inputs.push(Input {
            decoder,
            next,
            page,
            later_commit: u32::MAX,
        });
    }
    let mut smallest = u32::MAX;
    for input in inputs.iter_mut().rev() {
        input.later_commit = smallest;
        smallest = smallest.min(input.decoder.header().commit);
    }
    Ok(inputs)
}

fn output_header<R: Read>(inputs: &[Input<R>], options: CompactOptions) -> Result<Header, Error> {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(CompactError::NoInput.into());
    };
    let (first, last) = (first.decoder.header(), last.decoder.header());
    for (index, pair) in inputs.windows(2).enumerate() {
        let (previous, next) = (pair[0].decoder.header(), pair[1].decoder.header());
        let index = index + 1;
        if next.page_size != previous.page_size {
            let (expected, actual) = (previous.page_size, next.page_size);
            return Err(CompactError::PageSize {
                index,
                expected,
                actual,
            }
            .into());
        }
        if previous.max_txid.next() != Some(next.min_txid) {
            let (previous, actual) = (previous.max_txid, next.min_txid);
            return Err(CompactError::NotContiguous {
                index,
                previous,
                actual,
            }
            .into());
        }
    }
    Ok(Header {
        compressed: options.compressed,
        page_size: first.page_size,
        commit: last.commit,
        min_txid: first.min_txid,
        max_txid: last.max_txid,
        timestamp: last.timestamp,
        pre_apply: first.pre_apply,
        wal: None,
        node_id: options.node_id,
    })
}

/// The smallest page number that comes next anywhere, and the newest input that has it.
fn next_page<R>(inputs: &[Input<R>]) -> Option<(Pgno, usize)> {
    let next = |(index, input): (usize, &Input<R>)| Some((input.next?, std::cmp::Reverse(index)));
    let (pgno, newest) = inputs.iter().enumerate().filter_map(next).min()?;
    Some((pgno, newest.0))
}

fn finish<R: Read>(inputs: Vec<Input<R>>) -> Result<Trailer, Error> {
    let mut last: Option<Trailer> = None;
    for (index, input) in inputs.into_iter().enumerate() {
        let pre_apply = input.decoder.header().pre_apply;
        let trailer = input.decoder.finish()?;
        if let Some(post_apply) = last
            .map(|last| last.post_apply)
            .filter(|post_apply| *post_apply != pre_apply)
        {
            return Err(CompactError::Diverged {
                index,
                post_apply,
                pre_apply,
            }
            .into());
        }
        last = Some(trailer);
    }
    last.ok_or(CompactError::NoInput.into())
}

/// Demands content for every page that an input cut off (or did not have yet) and a later one brought back. Without it
/// the merge would leave what the page held before, or nothing.
struct Growth {
    /// The next page that must come; `None` when the rest is there.
    expected: Option<Pgno>,
    lock_page: Pgno,
    commit: u32,
}

impl Growth {
    fn new<R: Read>(inputs: &[Input<R>], header: &Header) -> Growth {
        let smallest = inputs
            .iter()
            .map(|input| input.decoder.header().commit)
            .min()
            .unwrap_or(0);
        let mut growth = Growth {
            expected: None,
            lock_page: header.page_size.lock_page(),
            commit: header.commit,
        };
        growth.expect_after(smallest);
        growth
    }

    fn expect_after(&mut self, page: u32) {
        let next = page.checked_add(1).and_then(Pgno::new);
        let next = if next == Some(self.lock_page) {
            self.lock_page.next()
        } else {
            next
        };
        self.expected = next.filter(|next| next.get() <= self.commit);
    }

    fn page(&mut self, pgno: Pgno) -> Result<(), CompactError> {
        match self.expected {
            Some(expected) if pgno > expected => Err(CompactError::Resurrected(expected)),
            Some(expected) if pgno == expected => {
                self.expect_after(pgno.get());
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn end(&self) -> Result<(), CompactError> {
        self.expected
            .map_or(Ok(()), |pgno| Err(CompactError::Resurrected(pgno)))
    }
}
