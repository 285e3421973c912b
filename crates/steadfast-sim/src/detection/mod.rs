//! A world of failure detectors alone: thousands of nodes, described networks, faults at given times.
//!
//! The detectors are the real core, driven as the agent drives it; there is no catalog, and no container. A
//! [`Plan`] says what is simulated, [`World`] carries it out from one seed, and [`Report`] says who knew what when,
//! what was said wrongly, and what it cost. Must never tell a detector anything that an agent could not know.
//! Read `plan`, then `fault`, then `world`.
//!
//! ```
//! use std::time::Duration;
//! use steadfast_sim::detection::{Plan, World};
//!
//! let plan = Plan {
//!     nodes: 5,
//!     duration: Duration::from_secs(4),
//!     faults: vec!["silent@2s:3".parse().unwrap()],
//!     ..Plan::default()
//! };
//! let report = World::new(&plan, 1).unwrap().run();
//! let last = report.findings[0].last().expect("every other node knows");
//! assert!(last < Duration::from_secs(1), "{last:?}");
//! assert_eq!(report.wrong.verdicts, 0);
//! ```

mod baseline;
mod checkers;
mod fault;
mod kernel;
mod medium;
mod plan;
mod queue;
mod removal;
mod report;
mod truth;
mod world;

pub use checkers::Violation;
pub use fault::{Fault, FaultError, Kind};
pub use plan::{Burst, Delay, NetworkPlan, ParseDelayError, Plan, PlanError, Removal};
pub use report::{Cost, Finding, Quantiles, Report, Said, Wrong, class_name};
pub use world::World;
