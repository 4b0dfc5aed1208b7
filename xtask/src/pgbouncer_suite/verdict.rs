//! What the outcomes say, given what is known to fail and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// Why tests don't pass, as docs/compatibility.toml says it. A test with parameters may be listed by its name alone.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Reasons {
    /// Tests of what helios has no part in.
    #[serde(default)]
    not_applicable: BTreeMap<String, String>,
    /// Tests of what helios ought to do, or does in another way.
    #[serde(default)]
    failed: BTreeMap<String, String>,
}

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Failed,
    Passed,
    Skipped,
}

/// A test and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) test: String,
    pub(crate) kind: Kind,
    /// The first line of what the suite says of it.
    pub(crate) detail: String,
}

/// The table's lines, and what is wrong with the reasons.
#[derive(Debug)]
pub(crate) struct Verdict {
    rows: BTreeMap<String, Row>,
    pub(crate) complaints: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Row {
    Failed(String),
    NotApplicable(String),
    Passed,
}

impl Reasons {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let reasons: Self = toml::from_str(text)?;
        let twice = |test: &&String| reasons.not_applicable.contains_key(*test);
        if let Some(test) = reasons.failed.keys().find(twice) {
            bail!("{test} is listed twice");
        }
        let all = reasons.not_applicable.iter().chain(&reasons.failed);
        if let Some((test, _)) = all.into_iter().find(|(_, why)| why.trim().is_empty()) {
            bail!("{test} is listed without a reason");
        }
        Ok(reasons)
    }

    fn of<'a>(&'a self, test: &str) -> Option<(&'a str, Row)> {
        let find = |list: &'a BTreeMap<String, String>| {
            let name = without_parameters(test);
            list.get_key_value(test)
                .or_else(|| list.get_key_value(name))
        };
        match (find(&self.not_applicable), find(&self.failed)) {
            (Some((listed, why)), _) => Some((listed, Row::NotApplicable(why.clone()))),
            (None, Some((listed, why))) => Some((listed, Row::Failed(why.clone()))),
            (None, None) => None,
        }
    }
}

impl Outcome {
    /// Reads what the plugin wrote.
    pub(crate) fn parse_all(report: &str) -> anyhow::Result<Vec<Self>> {
        report.lines().map(Self::parse).collect()
    }

    fn parse(line: &str) -> anyhow::Result<Self> {
        let mut fields = line.splitn(3, '\t');
        let (Some(kind), Some(test), Some(detail)) = (fields.next(), fields.next(), fields.next())
        else {
            bail!("not a line of a report: {line}");
        };
        let kind = match kind {
            "failed" => Kind::Failed,
            "passed" => Kind::Passed,
            "skipped" => Kind::Skipped,
            _ => bail!("not an outcome: {kind}"),
        };
        Ok(Self {
            test: test.to_owned(),
            kind,
            detail: detail.to_owned(),
        })
    }

    pub(crate) fn is_failure(&self) -> bool {
        self.kind == Kind::Failed
    }

    /// A failure that no reason foresees.
    pub(crate) fn is_surprise(&self, reasons: &Reasons) -> bool {
        self.is_failure() && reasons.of(&self.test).is_none()
    }
}

impl Verdict {
    /// `is_whole`: every test was run, so that one that is listed and was not run is gone.
    pub(crate) fn new(outcomes: &[Outcome], reasons: &Reasons, is_whole: bool) -> Self {
        let mut verdict = Self {
            rows: BTreeMap::new(),
            complaints: Vec::new(),
        };
        // By what is listed: how many tests it means, and how many of them pass all the same.
        let mut uses: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for outcome in outcomes {
            let reason = reasons.of(&outcome.test);
            if let Some((listed, _)) = &reason {
                let (met, passed) = uses.entry((*listed).to_owned()).or_default();
                *met += 1;
                *passed += usize::from(outcome.kind == Kind::Passed);
            }
            let row = match (outcome.kind, reason) {
                (Kind::Passed, _) => Row::Passed,
                (_, Some((_, row))) => row,
                (Kind::Failed, None) => {
                    verdict.complain(&outcome.test, "fails for no known reason", &outcome.detail);
                    Row::Failed(format!("not explained yet ({})", outcome.detail))
                }
                (Kind::Skipped, None) => {
                    Row::NotApplicable(format!("skipped by the suite ({})", outcome.detail))
                }
            };
            verdict.rows.insert(outcome.test.clone(), row);
        }
        for (listed, why) in reasons.not_applicable.iter().chain(&reasons.failed) {
            match uses.get(listed) {
                None if is_whole => verdict.complain(listed, "is listed and does not exist", why),
                Some((met, passed)) if is_whole && met == passed => {
                    verdict.complain(listed, "is listed and passes", why);
                }
                // What was left out may be the one of the test's parameters that fails; this one has none.
                Some((1, 1)) if outcomes.iter().any(|outcome| outcome.test == *listed) => {
                    verdict.complain(listed, "is listed and passes", why);
                }
                _ => {}
            }
        }
        verdict
    }

    fn complain(&mut self, test: &str, what: &str, detail: &str) {
        self.complaints.push(format!("{test} {what}: {detail}"));
    }

    /// How many passed, are not applicable, and failed.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let count = |is: fn(&Row) -> bool| self.rows.values().filter(|row| is(row)).count();
        (
            count(|row| *row == Row::Passed),
            count(|row| matches!(row, Row::NotApplicable(_))),
            count(|row| matches!(row, Row::Failed(_))),
        )
    }

    /// The table in Markdown, file by file.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut file = "";
        for (test, row) in &self.rows {
            let (of, name) = test.split_once("::").unwrap_or(("", test));
            if of != file {
                file = of;
                let _ = write!(text, "\n### {file}\n| test | |\n| --- | --- |\n");
            }
            let result = match row {
                Row::Failed(why) => format!("**failed**: {why}"),
                Row::NotApplicable(why) => format!("not applicable: {why}"),
                Row::Passed => "passed".to_owned(),
            };
            let _ = writeln!(text, "| `{name}` | {} |", result.replace('|', "\\|"));
        }
        text
    }
}

/// Puts the table where the document has its place.
pub(crate) fn fill_in(document: &str, command: &str, table: &str) -> anyhow::Result<String> {
    let begin = format!("<!-- from here on written by cargo xtask {command} -->");
    let (before, rest) = document
        .split_once(&begin)
        .with_context(|| format!("no line {begin}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("no line {END} after {begin}"))?;
    Ok(format!("{before}{begin}\n{}\n{END}{after}", table.trim()))
}

fn without_parameters(test: &str) -> &str {
    test.split('[').next().unwrap_or(test)
}

const END: &str = "<!-- to here -->";

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(text: &str) -> Reasons {
        Reasons::parse(text).expect("reasons")
    }

    fn verdict(report: &str, listed: &str, is_whole: bool) -> Verdict {
        let outcomes = Outcome::parse_all(report).expect("a report");
        Verdict::new(&outcomes, &reasons(listed), is_whole)
    }

    #[test]
    fn what_is_as_listed_is_a_table_without_complaints() {
        let report = "passed\ttest/a.py::one\t\nfailed\ttest/a.py::two\tboom\nskipped\ttest/b.py::three\tno LDAP\n\
                      failed\ttest/b.py::four[x]\tboom\n";
        let listed = "[failed]\n\"test/a.py::two\" = \"a | b\"\n[not-applicable]\n\"test/b.py::four\" = \"peers\"";
        let verdict = verdict(report, listed, true);
        assert_eq!(verdict.complaints, Vec::<String>::new());
        assert_eq!(verdict.counts(), (1, 2, 1));
        assert_eq!(
            verdict.table().trim(),
            "### test/a.py\n| test | |\n| --- | --- |\n| `one` | passed |\n| `two` | **failed**: a \\| b |\n\n\
             ### test/b.py\n| test | |\n| --- | --- |\n| `four[x]` | not applicable: peers |\n\
             | `three` | not applicable: skipped by the suite (no LDAP) |"
        );
    }

    #[test]
    fn a_failure_that_is_not_listed_is_complained_of() {
        let verdict = verdict("failed\ttest/a.py::two\tboom\n", "", true);
        assert_eq!(
            verdict.complaints,
            ["test/a.py::two fails for no known reason: boom"]
        );
        assert_eq!(verdict.counts(), (0, 0, 1));
    }

    #[test]
    fn a_listed_test_that_passes_or_is_gone_is_complained_of() {
        let listed = "[failed]\n\"test/a.py::one\" = \"old\"\n\"test/a.py::gone\" = \"old\"";
        let report = "passed\ttest/a.py::one\t\n";
        let whole = verdict(report, listed, true);
        assert_eq!(
            whole.complaints,
            [
                "test/a.py::gone is listed and does not exist: old",
                "test/a.py::one is listed and passes: old"
            ]
        );
        assert_eq!(whole.counts(), (1, 0, 0));
        // Where a part was run, it is not gone.
        let part = verdict(report, listed, false);
        assert_eq!(
            part.complaints,
            ["test/a.py::one is listed and passes: old"]
        );
    }

    #[test]
    fn a_name_without_parameters_needs_one_of_its_tests_to_fail() {
        let listed = "[failed]\n\"test/a.py::one\" = \"old\"";
        let report = "passed\ttest/a.py::one[1]\t\nfailed\ttest/a.py::one[2]\tboom\n";
        assert_eq!(
            verdict(report, listed, true).complaints,
            Vec::<String>::new()
        );
        let report = "passed\ttest/a.py::one[1]\t\npassed\ttest/a.py::one[2]\t\n";
        assert_eq!(verdict(report, listed, true).complaints.len(), 1);
        let report = "passed\ttest/a.py::one[1]\t\n";
        assert_eq!(verdict(report, listed, false).complaints.len(), 0);
    }

    #[test]
    fn a_reason_is_one_and_not_empty() {
        let error = Reasons::parse("[failed]\n\"a\" = \" \"").expect_err("empty");
        assert!(error.to_string().contains("without a reason"), "{error}");
        let twice = "[failed]\n\"a\" = \"x\"\n[not-applicable]\n\"a\" = \"y\"";
        let error = Reasons::parse(twice).expect_err("twice");
        assert!(error.to_string().contains("listed twice"), "{error}");
        Reasons::parse("[passed]\n\"a\" = \"x\"").expect_err("no such table");
    }

    #[test]
    fn the_rest_of_the_document_stays() {
        let begin = "<!-- from here on written by cargo xtask some-suite -->";
        let document = format!("before\n{begin}\nold\n{END}\nafter\n");
        let filled = fill_in(&document, "some-suite", "\nnew\n").expect("filled in");
        assert_eq!(filled, format!("before\n{begin}\nnew\n{END}\nafter\n"));
        fill_in("no place", "some-suite", "new").expect_err("no place");
        fill_in(&document, "other-suite", "new").expect_err("another's place");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        Outcome::parse_all("passed test/a.py::one").expect_err("no tabs");
        Outcome::parse_all("gone\ta\t").expect_err("no such outcome");
    }

    #[test]
    fn the_reasons_that_are_checked_in_can_be_read() {
        let file = crate::steps::workspace_root().join("docs/compatibility.toml");
        reasons(&std::fs::read_to_string(file).expect("the file"));
        let file = crate::steps::workspace_root().join("docs/compatibility.md");
        let document = std::fs::read_to_string(file).expect("the file");
        fill_in(&document, "pgbouncer-suite", "").expect("a place for the table");
    }
}
