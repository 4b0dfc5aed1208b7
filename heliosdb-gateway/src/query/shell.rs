//! Statements from a terminal, with an editable line, or from a pipe.

use std::io::{Read as _, Write as _};

use anyhow::Context as _;
use heliosdb_network::HidbTarget;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::{Asking, statements};

const HELP: &str = "\
Statements end with a semicolon. They share a session: BEGIN, SET and temporary tables work.
  \\q, Ctrl-D   leave
  \\?           this
  Ctrl-C       drop what is typed, or cancel what runs";

/// Asks what is typed, until it is enough.
pub(super) async fn run(asking: &Asking, target: &HidbTarget) -> anyhow::Result<()> {
    print(&format!(
        "helios {}, {target} (\\? for help)",
        env!("CARGO_PKG_VERSION")
    ));
    let mut editor = DefaultEditor::new().context("cannot use the terminal")?;
    let mut input = String::new();
    loop {
        let prompt = if input.trim().is_empty() {
            "helios=> "
        } else {
            "helios-> "
        };
        let line;
        (editor, line) = read_line(editor, prompt).await?;
        match line {
            Ok(line) => match line.trim() {
                "\\q" | "exit" | "quit" if input.trim().is_empty() => return Ok(()),
                "\\?" | "help" if input.trim().is_empty() => print(HELP),
                _ => {
                    input.push_str(&line);
                    input.push('\n');
                }
            },
            Err(ReadlineError::Interrupted) => input.clear(),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        }
        for statement in statements::take_complete(&mut input) {
            let _ = editor.add_history_entry(format!("{statement};"));
            if let Err(error) = asking.ask_in_session(&statement).await {
                print(&format!("{error:#}"));
                if !asking.client.is_usable() {
                    anyhow::bail!("the connection is lost");
                }
                break;
            }
        }
    }
}

/// Reading blocks, so it has a thread of its own.
async fn read_line(
    mut editor: DefaultEditor,
    prompt: &'static str,
) -> anyhow::Result<(DefaultEditor, rustyline::Result<String>)> {
    let reading = tokio::task::spawn_blocking(move || {
        let line = editor.readline(prompt);
        (editor, line)
    });
    reading.await.context("cannot read from the terminal")
}

/// Asks what comes, and stops at the first error.
pub(super) async fn run_script(asking: &Asking) -> anyhow::Result<()> {
    let reading = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text);
        read.map(|_| text)
    });
    let text = reading.await?.context("cannot read statements")?;
    for statement in statements::split(&text) {
        asking.ask_in_session(&statement).await?;
    }
    Ok(())
}

fn print(text: &str) {
    // Without a terminal there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{text}");
}
