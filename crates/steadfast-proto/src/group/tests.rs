//! Scripts of a group: small worlds in which every message arrives at once.
