//! Room `supervision`.
