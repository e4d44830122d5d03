//! The metrics of requests by route and status.
//!
//! Handles are kept: looking a metric up by its labels costs several times as much as recording it,
//! and every request records two.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::http::StatusCode;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use metrics::{Counter, Histogram};

use crate::telemetry;

/// Handles of the routes and statuses seen so far. Clients cannot add entries: a route is a
/// pattern, not a path.
#[derive(Default)]
pub(super) struct RouteMetrics(RwLock<HashMap<String, RouteHandles, FixedState>>);

struct RouteHandles {
    seconds: Histogram,
    answers: Vec<(StatusCode, Counter)>,
}

impl RouteMetrics {
    /// Records a request.
    pub(super) fn count(&self, route: &str, status: StatusCode, took: Duration) {
        let (seconds, answers) =
            self.find(route, status).unwrap_or_else(|| self.learn(route, status));
        seconds.record(took.as_secs_f64());
        answers.increment(1);
    }

    fn find(&self, route: &str, status: StatusCode) -> Option<(Histogram, Counter)> {
        // Entries are complete before they are inserted, so a poisoned lock is still usable.
        let routes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let RouteHandles { seconds, answers } = routes.get(route)?;
        let (_, answers) = answers.iter().find(|(known, _)| *known == status)?;
        Some((seconds.clone(), answers.clone()))
    }

    fn learn(&self, route: &str, status: StatusCode) -> (Histogram, Counter) {
        let seconds = metrics::histogram!(telemetry::REQUEST_SECONDS, "route" => route.to_owned());
        let code = status.as_u16().to_string();
        let answers =
            metrics::counter!(telemetry::REQUESTS, "route" => route.to_owned(), "status" => code);
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = routes
            .entry_ref(route)
            .or_insert_with(|| RouteHandles { seconds: seconds.clone(), answers: Vec::new() });
        // Another thread may have learnt it meanwhile.
        if known.answers.iter().all(|(listed, _)| *listed != status) {
            known.answers.push((status, answers.clone()));
        }
        (seconds, answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_status_however_often() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let counts = RouteMetrics::default();
            for (route, status) in [("/a", 200), ("/a", 503), ("/b", 200), ("/a", 200), ("/a", 200)]
            {
                counts.count(
                    route,
                    StatusCode::from_u16(status).expect("a status"),
                    Duration::from_millis(1),
                );
            }
        });
        let shown = recorder.handle().render();
        for line in [
            "rollmill_requests_total{route=\"/a\",status=\"200\"} 3",
            "rollmill_requests_total{route=\"/a\",status=\"503\"} 1",
            "rollmill_requests_total{route=\"/b\",status=\"200\"} 1",
            "rollmill_request_duration_seconds_count{route=\"/a\"} 4",
        ] {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
    }
}
