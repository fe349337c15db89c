//! Lines of a log, whatever the log is: a plain file, gzip, a stream. Bounded
//! in memory, and never waiting on what is no log: FIFOs, devices, links.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};

/// Longer lines are cut here and counted, bytes.
pub const MAX_LINE: usize = 64 * 1024;
const BUFFER: usize = 256 * 1024;

/// How far gzip may expand.
#[derive(Debug, Clone, Copy)]
struct Expansion {
    /// In all, bytes.
    most: u64,
    /// How many times its size, once it is more than `ratio_from` bytes.
    ratio: u64,
    ratio_from: u64,
}

const EXPANSION: Expansion = Expansion { most: 8 << 30, ratio: 200, ratio_from: 64 << 20 };

/// Why a file was not read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Skip {
    /// It is not there, or not any more.
    #[error("is not there")]
    Missing,
    /// We may not read it.
    #[error("cannot be read: permission denied")]
    Denied,
    /// A link, which whoever owns the directory can point anywhere.
    #[error("is a symbolic link; name the file it points to")]
    SymbolicLink,
    /// It lies outside the directory it must be in.
    #[error("lies outside of {}", .0.display())]
    Outside(PathBuf),
    /// A directory, FIFO, socket or device.
    #[error("is a {0}, not a file")]
    NotAFile(&'static str),
    /// The compressed data is damaged or cut off.
    #[error("is damaged gzip after line {line}: {source}")]
    Gzip {
        /// The last line that was read.
        line: u64,
        /// The decompressor's words.
        source: io::Error,
    },
    /// The compressed data expands without end.
    #[error("expands too far after line {line}: more than 200 times its size, or 8 GiB")]
    Bomb {
        /// The last line that was read.
        line: u64,
    },
    /// Anything else.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Opens a file that must be a regular one, and with `root` lie below it without any link on the way.
///
/// # Errors
/// [`Skip`], when it must not or cannot be read.
pub fn open(path: &Path, root: Option<&Path>) -> Result<File, Skip> {
    // Without NONBLOCK the opening of a FIFO waits for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = match root {
        None => openat(CWD, path, flags, Mode::empty()),
        Some(root) => {
            let below = path.strip_prefix(root).unwrap_or(path);
            let directory = openat(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            directory.and_then(|directory| {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                openat2(directory, below, flags, Mode::empty(), resolve)
            })
        }
    };
    let fd = opened.map_err(|error| match (error, root) {
        (Errno::LOOP, _) => Skip::SymbolicLink,
        (Errno::XDEV, Some(root)) => Skip::Outside(root.to_owned()),
        (Errno::NOENT | Errno::NOTDIR, _) => Skip::Missing,
        (Errno::ACCESS | Errno::PERM, _) => Skip::Denied,
        // A socket.
        (Errno::NXIO, _) => Skip::NotAFile("socket"),
        (error, _) => Skip::Io(error.into()),
    })?;
    regular(&fd)?;
    Ok(File::from(fd))
}

fn regular(fd: &OwnedFd) -> Result<(), Skip> {
    let stat = fstat(fd).map_err(|error| Skip::Io(error.into()))?;
    Err(Skip::NotAFile(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "directory",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::BlockDevice | FileType::CharacterDevice => "device",
        _ => "special file",
    }))
}

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'b> {
    /// Its number, from 1.
    pub number: u64,
    /// What stands there, without the line feed. Any bytes.
    pub bytes: &'b [u8],
}

/// The lines of a log, one after the other.
pub struct LogLines {
    reader: Box<dyn Read>,
    gzip: bool,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    long: Vec<u8>,
    at_end: bool,
    number: u64,
    truncated: u64,
}

impl std::fmt::Debug for LogLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogLines").field("gzip", &self.gzip).field("number", &self.number).finish()
    }
}

impl LogLines {
    /// Reads from anything; gzip is known by its first bytes.
    ///
    /// # Errors
    /// When the first bytes cannot be read.
    pub fn new(reader: impl Read + 'static) -> Result<Self, Skip> {
        Self::bounded(reader, EXPANSION)
    }

    fn bounded(reader: impl Read + 'static, bound: Expansion) -> Result<Self, Skip> {
        let compressed = Rc::new(Cell::new(0));
        let counted = Counted { inner: reader, count: Rc::clone(&compressed) };
        let mut buffered = BufReader::with_capacity(BUFFER, counted);
        let gzip = buffered.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read> = if gzip {
            let inner = flate2::bufread::MultiGzDecoder::new(buffered);
            Box::new(Expanded { inner, compressed, expanded: 0, bound })
        } else {
            Box::new(buffered)
        };
        Ok(Self {
            reader,
            gzip,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            long: Vec::new(),
            at_end: false,
            number: 0,
            truncated: 0,
        })
    }

    /// Lines that were longer than [`MAX_LINE`] and were cut there.
    #[must_use]
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Lines that were read.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line, `None` at the end. The last one need not end in a line feed.
    ///
    /// # Errors
    /// When reading fails; what was read until then has been given out.
    pub fn next_line(&mut self) -> Result<Option<Line<'_>>, Skip> {
        let mut searched = 0;
        loop {
            let waiting = &self.buffer[self.start + searched..self.end];
            if let Some(at) = memchr::memchr(b'\n', waiting) {
                let (from, to) = (self.start, self.start + searched + at);
                self.start = to + 1;
                self.number += 1;
                let mut bytes = &self.buffer[from..to];
                if bytes.len() > MAX_LINE {
                    self.truncated += 1;
                    bytes = &bytes[..MAX_LINE];
                }
                return Ok(Some(Line { number: self.number, bytes }));
            }
            searched = self.end - self.start;
            if searched > MAX_LINE {
                return self.long_line().map(Some);
            }
            if self.at_end {
                if searched == 0 {
                    return Ok(None);
                }
                let (from, to) = (self.start, self.end);
                self.start = to;
                self.number += 1;
                return Ok(Some(Line { number: self.number, bytes: &self.buffer[from..to] }));
            }
            self.fill()?;
        }
    }

    /// Keeps the beginning and drops the rest up to the line feed.
    fn long_line(&mut self) -> Result<Line<'_>, Skip> {
        self.long.clear();
        self.long.extend_from_slice(&self.buffer[self.start..self.start + MAX_LINE]);
        self.number += 1;
        self.truncated += 1;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.start..self.end]) {
                self.start += at + 1;
                break;
            }
            self.start = self.end;
            if self.at_end {
                break;
            }
            self.fill()?;
        }
        Ok(Line { number: self.number, bytes: &self.long })
    }

    fn fill(&mut self) -> Result<(), Skip> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = loop {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let read = read.map_err(|error| self.failed(error))?;
        self.end += read;
        self.at_end = read == 0;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> Skip {
        let line = self.number;
        match error.kind() {
            io::ErrorKind::QuotaExceeded => Skip::Bomb { line },
            _ if self.gzip => Skip::Gzip { line, source: error },
            _ => Skip::Io(error),
        }
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// Refuses to expand without end.
struct Expanded<R> {
    inner: R,
    compressed: Rc<Cell<u64>>,
    expanded: u64,
    bound: Expansion,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.expanded += read as u64;
        let ratio = self.expanded / self.compressed.get().max(1);
        let Expansion { most, ratio: highest, ratio_from } = self.bound;
        if self.expanded > most || (self.expanded > ratio_from && ratio > highest) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn all(bytes: impl Into<Vec<u8>>) -> (Vec<Vec<u8>>, u64) {
        let mut lines = LogLines::new(io::Cursor::new(bytes.into())).unwrap();
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            assert_eq!(line.number as usize, found.len() + 1);
            found.push(line.bytes.to_vec());
        }
        (found, lines.truncated())
    }

    #[test]
    fn lines_end_with_a_feed_or_with_the_file() {
        assert_eq!(all("a\n\nb").0, [b"a".to_vec(), b"".to_vec(), b"b".to_vec()]);
        assert!(all("").0.is_empty());
        let many = "0123456789\n".repeat(100_000);
        assert!(all(many).0.iter().all(|line| line == b"0123456789"));
    }

    #[test]
    fn a_line_of_ten_megabytes_is_cut_and_the_next_one_is_whole() {
        let (lines, truncated) = all(format!("a\n{}\nb\n", "x".repeat(10 << 20)));
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [1, MAX_LINE, 1]);
        assert_eq!(truncated, 1);
        assert_eq!(all("y".repeat(10 << 20)).0.len(), 1);
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_read_and_damage_is_told_after_what_was_whole() {
        assert_eq!(all(gzip(b"a\nb\n")).0.len(), 2);
        let mut twice = gzip(b"a\n");
        twice.extend(gzip(b"b\n"));
        assert_eq!(all(twice).0.len(), 2, "what was appended counts too");
        let text: String = (0..50_000).map(|n| format!("{}\n", n * 7919)).collect();
        let whole = gzip(text.as_bytes());
        let mut lines = LogLines::new(io::Cursor::new(whole[..whole.len() / 2].to_vec())).unwrap();
        let error = loop {
            match lines.next_line() {
                Ok(line) => assert!(line.is_some()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Skip::Gzip { line, .. } if line > 0), "{error}");
    }

    #[test]
    fn what_expands_without_end_is_given_up() {
        let bomb = gzip(&vec![b'\n'; 2 << 20]);
        let by_ratio = Expansion { ratio_from: 1 << 20, ..EXPANSION };
        let by_size = Expansion { most: 1 << 20, ..EXPANSION };
        for bound in [by_ratio, by_size] {
            let mut lines = LogLines::bounded(io::Cursor::new(bomb.clone()), bound).unwrap();
            let error = loop {
                match lines.next_line() {
                    Ok(line) => assert!(line.is_some()),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Skip::Bomb { .. }), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (log, link, outside) = (dir.path().join("log"), dir.path().join("link"), dir.path().join("out"));
        std::fs::write(&log, "a\n").unwrap();
        std::os::unix::fs::symlink(&log, &link).unwrap();
        std::os::unix::fs::symlink("/etc", &outside).unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::from_raw_mode(0o600)).unwrap();
        assert!(open(&log, None).is_ok() && open(&log, Some(dir.path())).is_ok());
        assert!(matches!(open(&link, None), Err(Skip::SymbolicLink)));
        assert!(matches!(open(&fifo, None), Err(Skip::NotAFile("FIFO"))));
        assert!(matches!(open(dir.path(), None), Err(Skip::NotAFile("directory"))));
        assert!(matches!(open(&dir.path().join("no"), None), Err(Skip::Missing)));
        assert!(matches!(open(&outside.join("passwd"), Some(dir.path())), Err(Skip::SymbolicLink)));
        assert!(matches!(open(Path::new("/etc/passwd"), Some(dir.path())), Err(Skip::Outside(_))));
    }
}
