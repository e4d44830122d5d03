//! What an error of the client means for the shard that is read.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::super::watermarks::OffsetSpec;
use super::KafkaReader;
use crate::model::offset::{Offset, ShardId};
use crate::persistence::log::LogError;

impl KafkaReader {
    /// Translates an error from the queue, or returns `None` if the client recovers by itself.
    pub(super) fn read_error(
        &self,
        shard: ShardId,
        from: Offset,
        error: &KafkaError,
    ) -> Option<LogError> {
        let code = match error {
            KafkaError::MessageConsumption(code) | KafkaError::MessageConsumptionFatal(code) => {
                *code
            }
            _ => return Some(LogError::Io(format!("shard {shard}: {error}"))),
        };
        match code {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                Some(self.out_of_range(shard, from))
            }
            RDKafkaErrorCode::LogTruncation => Some(LogError::Replaced(format!(
                "shard {shard} was cut below offset {from} by an election that lost records"
            ))),
            RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::InvalidMessage => {
                Some(LogError::Corrupt(format!(
                    "shard {shard}, offset {from} or above: the broker sent damaged bytes \
                     ({error})"
                )))
            }
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition => {
                Some(LogError::Replaced(format!(
                    "shard {shard}: the topic {} is gone ({error})",
                    self.topic
                )))
            }
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                Some(LogError::Io(format!("shard {shard}: {error}")))
            }
            // Brokers that are down or no longer leaders: the client recovers.
            _ => {
                tracing::debug!(shard = shard.0, %error, "Kafka reader");
                None
            }
        }
    }

    /// Distinguishes released records from a log that was replaced.
    fn out_of_range(&self, shard: ShardId, from: Offset) -> LogError {
        let list_offset = |spec| self.offset_client.list_offset(shard, spec).ok().flatten();
        match (list_offset(OffsetSpec::Earliest), list_offset(OffsetSpec::Latest)) {
            (Some(start), _) if from < start => {
                self.watermarks.set_start(shard, start);
                LogError::Released { shard, from, start }
            }
            (_, Some(end)) if from > end => {
                LogError::Replaced(format!("shard {shard} ends at {end}, below offset {from}"))
            }
            (start, _) => {
                // Records up to `from` were released meanwhile, so the client cannot check the one
                // before. A new seek decides.
                start.into_iter().for_each(|start| self.watermarks.set_start(shard, start));
                LogError::Corrupt(format!("shard {shard}: offset {from} was out of range"))
            }
        }
    }
}
