//! The same events in Debian's Prometheus and in VictoriaMetrics, and the same questions to all.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::foreign::{ForeignServer, run_prometheus};
use super::queries::{Agreement, Question, questions};
use super::{HOUR, HOURS, START, TestSeries, ask, await_all, decimal, program, send, test_series};
use crate::support::{Server, agent, free_port, wait_until};

/// At least 300 are promised.
const QUESTIONS: usize = 360;

/// How many of the questions VictoriaMetrics answers as Prometheus does, at least: 349 with its
/// release 1.79. The others have gaps, which MetricsQL takes otherwise in `bottomk`, `or`, `sgn` and
/// `group_right`, or labels that `label_replace` leaves empty, which it keeps.
const VICTORIA_AGREES: usize = 340;

/// The series as OpenMetrics: one sample for each event.
fn openmetrics(series: &[TestSeries]) -> String {
    let mut text = String::new();
    for metric in ["page_view", "load_time"] {
        writeln!(text, "# TYPE {metric} gauge").expect("written");
        for series in series.iter().filter(|series| series.metric == metric) {
            let labels: Vec<String> =
                series.labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            for (time, quarters) in &series.events {
                let (seconds, millis) = (time / 1_000, time % 1_000);
                let (labels, value) = (labels.join(","), decimal(*quarters));
                writeln!(text, "{metric}{{{labels}}} {value} {seconds}.{millis:03}")
                    .expect("written");
            }
        }
    }
    text + "# EOF\n"
}

fn start(dir: &Path, promtool: &str, prometheus: &str, series: &[TestSeries]) -> ForeignServer {
    let input = dir.join("in.om");
    std::fs::write(&input, openmetrics(series)).expect("written");
    let made = Command::new(promtool)
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&input, &dir.join("tsdb")])
        .output()
        .expect("promtool runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    run_prometheus(prometheus, dir, "global: {}\n")
}

/// The series in the text format of Prometheus, with times in milliseconds.
fn exposition(series: &[TestSeries]) -> String {
    let mut text = String::new();
    for series in series {
        let labels: Vec<String> =
            series.labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        for (time, quarters) in &series.events {
            let (metric, labels, value) = (series.metric, labels.join(","), decimal(*quarters));
            writeln!(text, "{metric}{{{labels}}} {value} {time}").expect("written");
        }
    }
    text
}

fn start_victoria(dir: &Path, victoria: &str, series: &[TestSeries]) -> ForeignServer {
    let port = free_port();
    let child = Command::new(victoria)
        .arg(format!("-storageDataPath={}", dir.join("victoria").display()))
        .arg(format!("-httpListenAddr=127.0.0.1:{port}"))
        .args(["-retentionPeriod=100y", "-search.latencyOffset=0s", "-search.disableCache"])
        .args(["-loggerLevel=ERROR", "-memory.allowedBytes=256MB"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("VictoriaMetrics runs");
    let found = ForeignServer { child, url: format!("http://127.0.0.1:{port}") };
    wait_until("VictoriaMetrics has the events", || {
        let import = format!("{}/api/v1/import/prometheus", found.url);
        let imported = agent().post(import).send(exposition(series));
        imported.is_ok_and(|answer| answer.status().is_success())
    });
    let flushed = agent().get(format!("{}/internal/force_flush", found.url)).call();
    assert!(flushed.is_ok_and(|answer| answer.status().is_success()), "it is searched at once");
    found
}

type Numbers = BTreeMap<(String, String), f64>;

/// Labels and time of each point, with its number.
fn numbers(answer: &Value) -> Numbers {
    assert_eq!(answer["status"], "success", "{answer}");
    let (kind, result) = (&answer["data"]["resultType"], &answer["data"]["result"]);
    let mut found = Numbers::new();
    let mut add = |labels: String, point: &Value| {
        let number = point[1].as_str().expect("a text").replace("+Inf", "inf");
        let time = point[0].to_string();
        let twice = found.insert((labels, time), number.parse().expect("a number"));
        assert_eq!(twice, None, "two points at one time: {answer}");
    };
    if kind == "scalar" {
        add(String::new(), result);
        return found;
    }
    for series in result.as_array().expect("series") {
        let mut labels = series["metric"].as_object().expect("labels").clone();
        labels.remove("__name__");
        let labels = Value::from(labels).to_string();
        let points = series.get("values").map(|values| values.as_array().expect("points").clone());
        for point in points.unwrap_or_else(|| vec![series["value"].clone()]) {
            add(labels.clone(), &point);
        }
    }
    found
}

fn agree(agreement: Agreement, ours: f64, theirs: f64) -> bool {
    let relative = match agreement {
        Agreement::Exact => return ours == theirs || (ours.is_nan() && theirs.is_nan()),
        Agreement::Rounding => 1e-9,
        Agreement::Sketch => 0.01,
    };
    let equal = ours == theirs || (ours.is_nan() && theirs.is_nan());
    // Variances near zero are rounding errors of either.
    equal || (ours - theirs).abs() <= relative * theirs.abs() + 1e-7
}

fn mistakes(question: &Question, ours: &Numbers, theirs: &Numbers) -> Option<String> {
    let Question { ours: query, theirs: same, agreement } = question;
    if let Some(key) = ours
        .keys()
        .chain(theirs.keys())
        .find(|key| ours.contains_key(*key) != theirs.contains_key(*key))
    {
        let whose = if ours.contains_key(key) { "ours" } else { "theirs" };
        return Some(format!("{query}\n  {same}\n  {key:?} is only in {whose}"));
    }
    let differs = ours.iter().find(|(key, number)| !agree(*agreement, **number, theirs[*key]))?;
    let (key, number) = differs;
    Some(format!("{query}\n  {same}\n  {key:?}: {number} and {} ({agreement:?})", theirs[key]))
}

/// What one question is asked with: the path, and the parameters beside the query.
struct Frame {
    path: &'static str,
    params: Vec<(&'static str, String)>,
}

/// Instant queries and ranges of several steps, in turns.
fn frame(number: usize) -> Frame {
    let hours = |hours: i64| ((START + hours * HOUR) / 1_000).to_string();
    let step = ["3600", "3h", "6h", "1d"][number % 4].to_owned();
    let (start, end) = (hours([2, 3, 6, 24][number % 4]), hours(HOURS - 2));
    match number % 5 {
        0 => Frame { path: "/api/v1/query", params: vec![("time", end)] },
        _ => Frame {
            path: "/api/v1/query_range",
            params: vec![("start", start), ("end", end), ("step", step)],
        },
    }
}

impl Frame {
    fn ask(&self, url: &str, query: &str) -> Value {
        let params = self.params.iter().map(|(name, value)| (*name, value.as_str()));
        let params: Vec<_> = params.chain([("query", query)]).collect();
        ask(url, self.path, &params)
    }

    /// The numbers of VictoriaMetrics; `None` if it refuses the query.
    fn ask_victoria(&self, url: &str, query: &str) -> Option<Numbers> {
        // Without it the ends of a range are moved to multiples of the step.
        let mut exactly = Frame { path: self.path, params: self.params.clone() };
        exactly.params.push(("nocache", "1".to_owned()));
        let answer = exactly.ask(url, query);
        (answer["status"] == "success").then(|| unlabelled(numbers(&answer)))
    }
}

/// VictoriaMetrics has no scalars: it answers a series without labels.
fn unlabelled(numbers: Numbers) -> Numbers {
    let named = |labels: String| if labels.is_empty() { "{}".to_owned() } else { labels };
    numbers.into_iter().map(|((labels, time), number)| ((named(labels), time), number)).collect()
}

/// How VictoriaMetrics compares: the questions that it answers as Prometheus does, and those of
/// them that we do not.
#[derive(Default)]
struct VictoriaTally {
    agrees: usize,
    differs: Vec<String>,
    wrong: Vec<String>,
}

impl VictoriaTally {
    fn add(&mut self, question: &Question, [own, prometheus]: [Numbers; 2], it: Option<Numbers>) {
        let (own, prometheus) = (unlabelled(own), unlabelled(prometheus));
        let Some(it) = it else {
            self.differs.push(format!("{}\n  is refused", question.theirs));
            return;
        };
        match mistakes(question, &it, &prometheus) {
            Some(difference) => self.differs.push(difference),
            None => {
                self.agrees += 1;
                self.wrong.extend(mistakes(question, &own, &it));
            }
        }
    }

    fn check(self, questions: usize) {
        let Self { agrees, differs, wrong } = self;
        eprintln!(
            "VictoriaMetrics answers {agrees} of {questions} as Prometheus does, and {} not:\n{}",
            differs.len(),
            differs.join("\n")
        );
        assert!(agrees >= VICTORIA_AGREES, "{agrees} questions compare too little");
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn generated_queries_have_the_answers_of_prometheus_and_victoriametrics() {
    let (Some(promtool), Some(prometheus)) = (program("promtool"), program("prometheus")) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let series = test_series();
    let theirs = start(dir.path(), &promtool, &prometheus, &series);
    let victoria = program("victoria-metrics");
    let victoria = victoria.map(|victoria| start_victoria(dir.path(), &victoria, &series));
    let server = Server::start(&dir.path().join("data"), &[]);
    send(&server, &series, &[]);
    for url in [&server.url, &theirs.url].into_iter().chain(victoria.as_ref().map(|it| &it.url)) {
        await_all(url, &series, |path, params| ask(url, path, params));
    }
    let (mut wrong, mut points) = (Vec::new(), 0);
    let mut tally = VictoriaTally::default();
    let questions = questions(QUESTIONS);
    for (number, question) in questions.iter().enumerate() {
        let frame = frame(number);
        let own = numbers(&frame.ask(&server.url, &question.ours));
        let other = numbers(&frame.ask(&theirs.url, &question.theirs));
        points += own.len();
        wrong.extend(mistakes(question, &own, &other));
        if let Some(victoria) = &victoria {
            let it = frame.ask_victoria(&victoria.url, &question.theirs);
            tally.add(question, [own, other], it);
        }
    }
    let exact = questions.iter().filter(|q| q.agreement == Agreement::Exact).count();
    eprintln!("{} questions, {exact} of them exact, {points} points", questions.len());
    assert!(points > 10_000, "{points} points compare too little");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    if victoria.is_some() {
        tally.check(questions.len());
    }
}
