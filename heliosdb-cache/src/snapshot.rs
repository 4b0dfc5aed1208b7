//! Answers in a file, for warm restarts.
//!
//! A head (magic number, format, lineage, and their checksum), records (length, bytes; each with a checksum of its own),
//! and an end (length 0, the number of records, and a checksum over those of all records in their order). All numbers are
//! little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use rapidhash::v3::rapidhash_v3;

use crate::backend::{PackedAnswer, StorageBackend};
use crate::cache_manager::CacheManager;
use crate::error::{CacheError, Result};
use crate::record::Record;
use crate::version::Lineage;

const MAGIC: [u8; 8] = *b"heliosdb";
const FORMAT: u32 = 1;
/// No answer comes near it: a length above is damage, and nothing is allocated for it.
const RECORD_MAX: u32 = 1 << 30;
const HEAD: usize = 8 + 4 + 16;

impl<B: StorageBackend> CacheManager<B> {
    /// Writes the answers that may be served to a file, which takes the place of one that is there when it is complete.
    /// Returns how many.
    ///
    /// `lineage` is what the answers' truth rests on: the file can only be loaded with the same. It is the caller's word
    /// that nothing they depend on has changed in between: for instance a database's system identifier with its log
    /// position, both before the cache is saved at the end and after the restart.
    ///
    /// Blocks: call it from a thread that may.
    ///
    /// # Errors
    /// [`CacheError::Snapshot`] if the file can't be written, or if something was written to the database meanwhile.
    pub fn save(&self, path: impl AsRef<Path>, lineage: &Lineage) -> Result<usize> {
        let path = path.as_ref();
        let versions = self.versions();
        let mut answers = self.answers();
        answers.retain(|answer| versions.is_current(answer.block.dependencies()));
        let position = versions.applied();
        let now = self.now();
        let records = answers.iter().filter_map(|answer| {
            let record = Record::new(&answer.block, position, versions, now);
            record.lifetime().is_some().then(|| record.to_bytes())
        });
        let written = write(path, lineage, records, || {
            answers
                .iter()
                .all(|answer| versions.is_current(answer.block.dependencies()))
        });
        written.map_err(|error| refused(path, &error))
    }

    /// Stores the answers of a file that [`save`](Self::save) wrote. Returns how many; those that are past their time, or
    /// that there is no room for, are left out.
    ///
    /// To be called before anything is written through this cache. The whole file is checked before the first answer is
    /// stored. Blocks: call it from a thread that may.
    ///
    /// # Errors
    /// [`CacheError::Snapshot`] if the file can't be read, is damaged, of another format, lineage or number of version
    /// slots, or if something has been invalidated already; then nothing of it is served.
    pub fn load(&self, path: impl AsRef<Path>, lineage: &Lineage) -> Result<usize> {
        let path = path.as_ref();
        self.load_all(path, lineage)
            .map_err(|error| refused(path, &error))
    }

    fn load_all(&self, path: &Path, lineage: &Lineage) -> io::Result<usize> {
        let versions = self.versions();
        let is_untouched = || {
            if versions.invalidations() == 0 {
                return Ok(());
            }
            Err(invalid("something was invalidated before it was loaded"))
        };
        is_untouched()?;
        let mut slots_differ = false;
        read(path, lineage, |bytes| {
            let record = Record::from_bytes(bytes)?;
            slots_differ |= record.slots(versions).is_none();
            Some(())
        })?;
        if slots_differ {
            return Err(invalid(
                "it is of a cache with another number of version slots",
            ));
        }
        let (mut loaded, mut touched) = (0, Ok(()));
        read(path, lineage, |bytes| {
            let record = Record::from_bytes(bytes)?;
            let observed = versions.observe(&record.slots(versions)?);
            // After the observation: what is written later makes it out of date.
            if touched.is_ok() {
                touched = is_untouched();
            }
            if let (Ok(()), Some(observed)) = (&touched, observed)
                && let Some(block) = record.to_block(observed.as_ref(), self.now())
            {
                loaded += usize::from(self.restore(PackedAnswer::of(block)));
            }
            Some(())
        })?;
        touched.map(|()| loaded)
    }
}

/// `is_true` is asked when all is written, and before it takes the place of what was there.
fn write(
    path: &Path,
    lineage: &Lineage,
    records: impl Iterator<Item = Vec<u8>>,
    is_true: impl Fn() -> bool,
) -> io::Result<usize> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // For its owner's eyes only, and removed if it does not get to its place.
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let mut out = BufWriter::new(file);
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(lineage);
    out.write_all(&head)?;
    out.write_all(&rapidhash_v3(&head).to_le_bytes())?;
    let (mut count, mut sum) = (0_u64, 0_u64);
    for record in records {
        let Ok(len) = u32::try_from(record.len()) else {
            continue;
        };
        if len > RECORD_MAX {
            continue;
        }
        out.write_all(&len.to_le_bytes())?;
        out.write_all(&record)?;
        count += 1;
        sum = chain(sum, &record);
    }
    out.write_all(&0_u32.to_le_bytes())?;
    out.write_all(&count.to_le_bytes())?;
    out.write_all(&sum.to_le_bytes())?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    if !is_true() {
        return Err(invalid(
            "something was invalidated while it was written; try again",
        ));
    }
    file.persist(path).map_err(|error| error.error)?;
    // So that the new name outlives a failure of the power too. Not every system can.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    usize::try_from(count).map_err(io::Error::other)
}

/// Calls `each` with the bytes of each record, which returns `None` for those that are none, and checks all there is to
/// check.
fn read(
    path: &Path,
    lineage: &Lineage,
    mut each: impl FnMut(&[u8]) -> Option<()>,
) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let mut head = [0; HEAD + 8];
    file.read_exact(&mut head)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("it is not a snapshot of a cache"),
            _ => error,
        })?;
    let (head, sum) = head.split_at(HEAD);
    let (magic, rest) = head.split_at(8);
    let (format, of) = rest.split_at(4);
    if magic != MAGIC {
        return Err(invalid("it is not a snapshot of a cache"));
    }
    if format != FORMAT.to_le_bytes() {
        return Err(invalid("it is of another version of the format"));
    }
    if sum != rapidhash_v3(head).to_le_bytes() {
        return Err(invalid("its head is damaged"));
    }
    if of != lineage {
        return Err(invalid("it is of another lineage"));
    }
    let (mut count, mut sum) = (0_u64, 0_u64);
    let mut record = Vec::new();
    loop {
        let len = u32::from_le_bytes(number(&mut file)?);
        if len == 0 {
            break;
        }
        if len > RECORD_MAX {
            return Err(damaged(count));
        }
        record.clear();
        // Not more is allocated than there is.
        let read = file.by_ref().take(len.into()).read_to_end(&mut record)?;
        if read != len as usize {
            return Err(invalid("it is cut off"));
        }
        each(&record).ok_or_else(|| damaged(count))?;
        count += 1;
        sum = chain(sum, &record);
    }
    let (said, said_sum): ([u8; 8], [u8; 8]) = (number(&mut file)?, number(&mut file)?);
    if said != count.to_le_bytes() || said_sum != sum.to_le_bytes() {
        return Err(invalid("its records are not those it was closed with"));
    }
    if file.read(&mut [0])? > 0 {
        return Err(invalid("it goes on after its end"));
    }
    Ok(())
}

fn number<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("it is cut off"),
            _ => error,
        })?;
    Ok(bytes)
}

/// A checksum over records and their order.
fn chain(sum: u64, record: &[u8]) -> u64 {
    let record = rapidhash_v3(record);
    let mut both = [0; 16];
    both[..8].copy_from_slice(&sum.to_le_bytes());
    both[8..].copy_from_slice(&record.to_le_bytes());
    rapidhash_v3(&both)
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn damaged(record: u64) -> io::Error {
    invalid(&format!("record {} is damaged", record + 1))
}

fn refused(path: &Path, error: &io::Error) -> CacheError {
    CacheError::Snapshot {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}
