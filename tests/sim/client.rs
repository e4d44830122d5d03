//! Clients: they send requests, resend them until they are acknowledged, and sometimes afterwards.

use std::sync::Arc;

use bytes::Bytes;
use rollmill::actors::record_builder::records_of;
use rollmill::invariants::Invariant;
use rollmill::model::batch::{ValidBatch, ValidEvent};
use rollmill::model::decimal::Decimal;
use rollmill::model::offset::ShardId;
use rollmill::persistence::log::{AppendRequest, LogAppender, LogReader};

use crate::fold::{LoggedRecord, POISON, SimEvent, TENANTS, series, tenant_of, users};
use crate::plants::Plant;
use crate::report::{Fault, Violation, ensure};
use crate::world::SimWorld;

/// A request and its state.
#[derive(Debug, Clone)]
pub struct SimRequest {
    pub events: Vec<SimEvent>,
    /// The records of the request; no events if the payload does not decode.
    pub records: Vec<(ShardId, Bytes, Option<Vec<SimEvent>>)>,
    pub acked: bool,
}

impl SimWorld {
    /// A client sends or resends a request.
    pub fn run_client(&mut self) -> Result<(), Violation> {
        let waiting: Vec<usize> =
            (0..self.requests.len()).filter(|r| !self.requests[*r].acked).collect();
        if !waiting.is_empty() && self.rng.chance(500) {
            let again = self.rng.pick(&waiting);
            return self.send(again, true);
        }
        if !self.requests.is_empty() && self.rng.chance(self.setup.resend) {
            let again = self.rng.below(self.requests.len());
            if self.rng.chance(200) && self.requests[again].records.iter().all(|r| r.2.is_some()) {
                self.hit(Fault::Conflict);
                let mut events = self.requests[again].events.clone();
                events.iter_mut().for_each(|event| event.value = Some(77));
                let request = self.request(events);
                self.requests.push(request);
                return self.send(self.requests.len() - 1, true);
            }
            return self.send(again, true);
        }
        let request = if self.rng.chance(self.setup.undecodable) {
            let shard = ShardId(self.rng.below(self.shards()) as u32);
            let garbage = Bytes::from(format!("garbage {}", self.next_id));
            self.next_id += 1;
            SimRequest { events: vec![], records: vec![(shard, garbage, None)], acked: false }
        } else {
            let tenant = self.rng.below(2);
            let events = (0..1 + self.rng.below(4)).map(|_| self.event(tenant)).collect();
            self.request(events)
        };
        self.requests.push(request);
        self.send(self.requests.len() - 1, false)
    }

    fn event(&mut self, tenant: usize) -> SimEvent {
        let late = self.rng.chance(self.setup.late);
        if late {
            self.hit(Fault::LateEvent);
        }
        self.next_id += 1;
        let id = self.next_id;
        let rng = &mut self.rng;
        SimEvent {
            series: tenant * 6 + rng.below(6),
            timestamp: self.now - if late { 90_000_000 } else { rng.pick(&[0, 10, 3_600_000]) },
            value: rng.chance(900).then(|| rng.below(2_000_000_000) as i64 - 500_000_000),
            user: rng.chance(600).then(|| rng.below(6) as u8),
            id: (!rng.chance(self.setup.without_id)).then_some(id),
            poison: rng.chance(self.setup.poison),
        }
    }

    /// Encodes a request as the gateway does.
    pub fn request(&self, events: Vec<SimEvent>) -> SimRequest {
        let all = series(self.setup.shards);
        let valid = |event: &SimEvent| ValidEvent {
            series: all[event.series].clone(),
            timestamp: event.timestamp,
            value: event.value.map(|v| Decimal::from_units(v.into())),
            user: if event.poison { Some(POISON.to_owned()) } else { event.user.map(users) },
            id: event.id.map(|id| format!("e{id}")),
            raw: 0..2,
        };
        let tenant: Arc<str> = TENANTS[tenant_of(events[0].series)].into();
        let batch = ValidBatch {
            tenant,
            body: Bytes::from_static(b"{}"),
            events: events.iter().map(valid).collect(),
        };
        let of_shard = |shard: ShardId| {
            events.iter().filter(|e| all[e.series].shard == shard).copied().collect::<Vec<_>>()
        };
        let records = records_of(&batch, 1, 0).records.into_iter();
        let records =
            records.map(|(shard, payload)| (shard, payload, Some(of_shard(shard)))).collect();
        SimRequest { events, records, acked: false }
    }

    pub fn send(&mut self, r: usize, again: bool) -> Result<(), Violation> {
        if again {
            self.hit(Fault::Resent);
        }
        let mut records: Vec<_> = self.requests[r]
            .records
            .iter()
            .map(|(shard, payload, _)| (*shard, payload.clone()))
            .collect();
        if self.has_plant(Plant::RequestTorn) {
            records.truncate(1);
        }
        let answer = self
            .log
            .append(AppendRequest { records })
            .expect("the log is open")
            .try_recv()
            .expect("the double answers");
        self.add_trace(|| format!("request {r} is appended: {answer:?}"));
        self.record_history(r)?;
        let lost = answer.is_ok() && self.rng.chance(self.setup.ack_lost);
        if lost {
            self.hit(Fault::AckLost);
        }
        if (answer.is_ok() && !lost) || self.has_plant(Plant::AckBeforeLog) {
            self.requests[r].acked = true;
        }
        Ok(())
    }

    /// Records what the log has kept of a request.
    fn record_history(&mut self, r: usize) -> Result<(), Violation> {
        for s in 0..self.shards() {
            let shard = ShardId(s as u32);
            let mut next = self.history[s].len() as u64;
            while next < self.log.end(shard) {
                for record in self.log.read(shard, next, 1 << 20).expect("the tail is there") {
                    let sent = self.requests[r]
                        .records
                        .iter()
                        .find(|(at, payload, _)| *at == shard && *payload == record.payload);
                    let Some((_, payload, events)) = sent else {
                        return ensure(Invariant::ExactEffect, false, || {
                            "the log holds what nobody sent".to_owned()
                        });
                    };
                    self.history[s].push(LoggedRecord {
                        appended: record.appended,
                        received: record.received,
                        payload: payload.clone(),
                        events: events.clone(),
                    });
                    next = record.offset + 1;
                }
            }
        }
        Ok(())
    }

    /// Resends what is not acknowledged, until every client has its acknowledgement.
    pub fn resend_unacknowledged(&mut self) -> Result<(), Violation> {
        self.setup.ack_lost = 0;
        for r in 0..self.requests.len() {
            if !self.requests[r].acked {
                self.send(r, true)?;
            }
        }
        Ok(())
    }
}
