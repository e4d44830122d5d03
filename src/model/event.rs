//! Events as clients send them, and the codes with which they are refused.

/// Why an event is refused. The names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventErrorCode {
    /// No metric, or not a valid name.
    MetricInvalid,
    /// Labels that break a rule or a limit.
    LabelsInvalid,
    /// A value that is not a finite decimal number.
    ValueInvalid,
    /// A value beyond ±10^18.
    ValueOutOfRange,
    /// A timestamp that is no time.
    TimestampInvalid,
    /// Later than now + `accept.max_ahead`.
    TimestampInFuture,
    /// Earlier than now − `accept.max_age`.
    TimestampTooOld,
    /// More bytes than `accept.max_event_bytes`.
    EventTooLarge,
    /// An id that breaks a rule.
    IdInvalid,
    /// A user that breaks a rule.
    UserInvalid,
}

impl EventErrorCode {
    /// The name in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::MetricInvalid => "metric_invalid",
            Self::LabelsInvalid => "labels_invalid",
            Self::ValueInvalid => "value_invalid",
            Self::ValueOutOfRange => "value_out_of_range",
            Self::TimestampInvalid => "timestamp_invalid",
            Self::TimestampInFuture => "timestamp_in_future",
            Self::TimestampTooOld => "timestamp_too_old",
            Self::EventTooLarge => "event_too_large",
            Self::IdInvalid => "id_invalid",
            Self::UserInvalid => "user_invalid",
        }
    }
}
