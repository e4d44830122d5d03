//! Runs what blocks a thread: queries and the operations of administrators, under the same limits
//! and the same deadline, `query.timeout`.
//!
//! Work ends with its budget: at the deadline, and when nobody waits for it any more, because the
//! connection is gone. The store gives up for it then, even one that never answers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::ApiError;
use super::{Gateway, shares};
use crate::api::status::StatusAnswer;
use crate::model::budget::{AbortReason, QueryBudget};
use crate::operate::service::{NO_ANSWER, OperateError};
use crate::query::error::QueryError;
use crate::query::service::QueryService;

/// How long an operation that was ended may take to say whether it wrote something.
const OUTCOME_GRACE: Duration = Duration::from_secs(2);
/// The status waits no longer for the store: it has the nodes' own reports without it, and is
/// asked for when something hangs.
const STATUS_STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// When to try again after the store did not answer, in seconds.
const RETRY_AFTER: u64 = 5;

/// Cancels the work when the future that waits for it is dropped.
struct AbandonOnDrop(Arc<QueryBudget>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.abort(AbortReason::Abandoned);
    }
}

/// Work on the query pool.
struct RunningWork<T> {
    budget: AbandonOnDrop,
    answer: oneshot::Receiver<Result<T, ApiError>>,
}

impl<T> RunningWork<T> {
    /// The answer, or `None` after `limit`, when the work is told to end.
    async fn until(&mut self, limit: Duration) -> Option<Result<T, ApiError>> {
        match tokio::time::timeout(limit, &mut self.answer).await {
            Ok(answer) => Some(answer.unwrap_or_else(|_| Err(ApiError::internal()))),
            Err(_) => {
                self.budget.0.abort(AbortReason::TimedOut);
                None
            }
        }
    }
}

impl Gateway {
    /// Runs a query on the query pool. Dropping the future cancels the query. Fails with 429 or 503
    /// if too many queries run; 503 if it times out; otherwise as `question` does.
    pub(super) async fn run_query<T, Q>(
        &self,
        tenant: &Arc<str>,
        question: Q,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        Q: FnOnce(&dyn QueryService, &QueryBudget) -> Result<T, ApiError> + Send + 'static,
    {
        let queries = self.deps.queries.clone();
        let mut running = self.start(tenant, move |budget| question(&*queries, budget))?;
        let limit = self.deps.config.query.timeout;
        running.until(limit).await.unwrap_or_else(|| {
            let message = format!(
                "no answer within {} s (query.timeout): ask for a shorter range or fewer series, \
                 or retry",
                limit.as_secs_f64()
            );
            Err(ApiError::unavailable("query_timeout", message, RETRY_AFTER))
        })
    }

    /// Runs an operation on the store, under the limits of queries. At the deadline it is ended,
    /// and the answer still says whether anything was written. Fails with 429 or 503 if too much
    /// runs; 503 if the store does not answer; 500 if it panics, which affects nothing else;
    /// otherwise as `work` does.
    pub(super) async fn run_operation<T: Send + 'static>(
        &self,
        tenant: &Arc<str>,
        work: impl FnOnce(&QueryBudget) -> Result<T, OperateError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut running = self.start(tenant, work)?;
        if let Some(answer) = running.until(self.deps.config.query.timeout).await {
            return answer;
        }
        match running.until(OUTCOME_GRACE).await {
            // It had not begun.
            Some(Err(error)) if error.code == "query_abandoned" => {
                Err(ApiError::unavailable("store_unavailable", NO_ANSWER, RETRY_AFTER))
            }
            Some(answer) => answer,
            None => Err(ApiError::unavailable(
                "store_unavailable",
                "the store did not answer within query.timeout, and it is not known whether it \
                 wrote anything: look, and try again; what is done is not done twice",
                RETRY_AFTER,
            )),
        }
    }

    /// Starts work that blocks on the query pool. Fails with 429 or 503 if too much runs.
    fn start<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
        &self,
        tenant: &Arc<str>,
        work: impl FnOnce(&QueryBudget) -> Result<T, E> + Send + 'static,
    ) -> Result<RunningWork<T>, ApiError> {
        let turn = shares::reserve(&self.shares.queries, tenant, 1)?;
        let budget = Arc::new(QueryBudget::from_share(shares::reserve(
            &self.shares.query_memory,
            tenant,
            0,
        )?));
        let own = budget.clone();
        let answer = self.queries.run(tenant, move || {
            // Held until the work really ends, even if the caller has stopped waiting: it still
            // uses the pool.
            let _turn = turn;
            match own.abort_reason() {
                Some(_) => Err(ApiError::from(QueryError::Abandoned)),
                None => work(&own).map_err(Into::into),
            }
        });
        Ok(RunningWork { budget: AbandonOnDrop(budget), answer })
    }

    /// The status of nodes and shards. Dropping the future ends the wait for the store.
    ///
    /// # Errors
    /// 503 if others are waiting for it, 500 if it crashed.
    pub(super) async fn collect_status(&self) -> Result<StatusAnswer, ApiError> {
        let most = self.deps.config.query.timeout;
        // One at a time: each call asks every other node, and they must not pile up.
        let Ok(_turn) = tokio::time::timeout(most, self.status.lock()).await else {
            let message = "others wait for the status already: retry";
            return Err(ApiError::unavailable("overloaded", message, RETRY_AFTER));
        };
        let (status, budget) = (self.deps.status.clone(), Arc::new(QueryBudget::default()));
        let (own, _ends) = (budget.clone(), AbandonOnDrop(budget.clone()));
        let mut answer = tokio::task::spawn_blocking(move || status.status(&own));
        let answer = in_time(STATUS_STORE_TIMEOUT.min(most), &mut answer, &budget).await;
        answer.map_err(|error| {
            tracing::error!(%error, "the status crashed");
            ApiError::internal()
        })
    }
}

/// Waits for work that ends soon after its budget, which is `limit`.
async fn in_time<F: Future + Unpin>(
    limit: Duration,
    work: &mut F,
    budget: &QueryBudget,
) -> F::Output {
    if let Ok(done) = tokio::time::timeout(limit, &mut *work).await {
        return done;
    }
    budget.abort(AbortReason::TimedOut);
    work.await
}
