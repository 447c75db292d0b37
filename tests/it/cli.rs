//! The command line: the real binary, its output, its exit codes.

mod admin;
mod configuration;
mod connecting;
mod serving;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{ADMIN, Keyward};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command left behind.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// Standard output of a command that did what it was asked for.
    #[track_caller]
    fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }
    #[track_caller]
    fn json(self) -> Value {
        let out = self.done();
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("not JSON: {out}"))
    }
    /// Standard error of a command that did not; it printed nothing that could be taken for a result.
    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_str()), (Some(code), ""), "{self:?}");
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err
    }
}

/// How a command is called: its folder and the whole of its environment.
struct Shell<'a> {
    folder: &'a Path,
    env: BTreeMap<String, String>,
}

impl<'a> Shell<'a> {
    fn new(folder: &'a Path) -> Self {
        Self { folder, env: BTreeMap::new() }
    }

    /// One that speaks to this instance as its administrator.
    fn of(keyward: &'a Keyward) -> Self {
        let url = format!("http://{}", keyward.app.admin_address());
        Self::new(keyward.world.dir.path()).with("KEYWARD_ADMIN_URL", &url).with("KEYWARD_ADMIN_TOKEN", ADMIN)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Begins a command with these words; a word ends at a space, `~` stands for one inside of a word.
    fn begin(&self, words: &str) -> Running {
        self.begin_with(&words.split(' ').map(|word| word.replace('~', " ")).collect::<Vec<_>>())
    }

    fn begin_with<S: AsRef<str>>(&self, words: &[S]) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.args(words.iter().map(AsRef::as_ref)).env_clear().envs(&self.env).current_dir(self.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Lines::of(child.stdout.take().unwrap());
        let err = Lines::of(child.stderr.take().unwrap());
        Running { child, out, err }
    }

    /// Runs a command to its end.
    fn run(&self, words: &str) -> Ran {
        self.begin(words).end()
    }

    /// Writes a file of this folder.
    fn file(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.folder.join(name), text).unwrap();
        self
    }
}

/// A stream that is read as it comes.
struct Lines {
    next: Receiver<String>,
    seen: String,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, next) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { next, seen: String::new() }
    }

    /// The next line with these words in it.
    #[track_caller]
    fn wait_for(&mut self, words: &str) -> String {
        loop {
            let line = self.next.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("`{words}` did not come after\n{}", self.seen));
            self.seen.push_str(&line);
            self.seen.push('\n');
            if line.contains(words) {
                return line;
            }
        }
    }

    fn all(mut self) -> String {
        while let Ok(line) = self.next.recv_timeout(PATIENCE) {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        self.seen
    }
}

/// A command under way; ended with the test at the latest.
struct Running {
    child: Child,
    out: Lines,
    err: Lines,
}

impl Running {
    /// Says something to it.
    fn say(&mut self, text: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    fn end(mut self) -> Ran {
        drop(self.child.stdin.take());
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
                None => panic!("it does not end: {} {}", self.out.seen, self.err.seen),
            }
        };
        let (out, err) =
            (std::mem::replace(&mut self.out, Lines::nothing()), std::mem::replace(&mut self.err, Lines::nothing()));
        Ran { code: status.code(), out: out.all(), err: err.all() }
    }
}

impl Lines {
    fn nothing() -> Self {
        Self { next: mpsc::channel().1, seen: String::new() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Checks that every column of a table begins where its heading does; answers the rows by heading.
#[track_caller]
fn table(text: &str) -> Vec<BTreeMap<String, String>> {
    let lines: Vec<Vec<char>> = text.lines().map(|line| line.chars().collect()).collect();
    let head = &lines[0];
    let begins = |at: usize| head[at] != ' ' && (at == 0 || (at >= 2 && head[at - 1] == ' ' && head[at - 2] == ' '));
    let starts: Vec<usize> = (0..head.len()).filter(|at| begins(*at)).collect();
    let cells = |line: &Vec<char>| -> Vec<String> {
        let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
        let columns = starts.iter().copied().zip(ends);
        columns
            .map(|(start, end)| {
                let end = end.min(line.len());
                assert!(start < end, "a cell is missing:\n{text}");
                assert!(start == 0 || (line[start - 1] == ' ' && line[start - 2] == ' '), "not aligned:\n{text}");
                let cell: String = line[start..end].iter().collect();
                assert!(!cell.starts_with(' '), "not aligned:\n{text}");
                cell.trim_end().to_owned()
            })
            .collect()
    };
    let names = cells(head);
    lines[1..].iter().map(|line| names.iter().cloned().zip(cells(line)).collect()).collect()
}

/// The values of a record that was printed for people.
#[track_caller]
fn pairs(text: &str) -> BTreeMap<String, String> {
    let starts: Vec<_> = text.lines().map(|line| line.find(":  ").unwrap()).collect();
    let value = |line: &str| line.len() - line.split_once(':').unwrap().1.trim_start().len();
    assert!(text.lines().all(|line| value(line) == value(text.lines().next().unwrap())), "not aligned:\n{text}");
    let split = |(line, at): (&str, usize)| (line[..at].to_owned(), line[at + 1..].trim().to_owned());
    text.lines().zip(starts).map(split).collect()
}
