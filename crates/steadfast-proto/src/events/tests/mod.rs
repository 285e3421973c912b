//! EV1-EV5.
