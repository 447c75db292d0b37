//! How far long work has come: a bar on a terminal, now and then a line elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use keyward::store::Progress;

use super::output;

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(5);

/// Shows progress on standard error until it is dropped.
pub struct Shown {
    verb: &'static str,
    way: Way,
}

enum Way {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Shown {
    /// `verb` stands in front of the table's name: "Copying audit".
    pub fn new(verb: &'static str) -> Self {
        let way = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{msg:32} {wide_bar} {human_pos}/{human_len}  {eta}")
                .expect("the template is a constant");
            Way::Bar(ProgressBar::new(0).with_style(style))
        } else {
            Way::Lines { last: None }
        };
        Self { verb, way }
    }

    /// Shows where the work is.
    pub fn at(&mut self, progress: Progress) {
        let Progress { table, done, total } = progress;
        match &mut self.way {
            Way::Bar(bar) => {
                bar.set_length(total);
                bar.set_message(format!("{} {table}", self.verb));
                bar.set_position(done);
            }
            Way::Lines { last } if done == total || last.is_none_or(|last| last.elapsed() >= PAUSE) => {
                output::say(&format!("{} {table}: {done} of {total}", self.verb));
                *last = Some(Instant::now());
            }
            Way::Lines { .. } => {}
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Way::Bar(bar) = &self.way {
            bar.finish_and_clear();
        }
    }
}
