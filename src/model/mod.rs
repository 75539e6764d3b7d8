//! The decisions, pure: no I/O, no clock, no thread, no lock. Time is passed in.
//!
//! Reading order: [`event`] is the vocabulary that the API, the database and the hooks share; [`session`] says which
//! session answers a message; [`turn`] what a turn may become; [`settings`] what an operator decides of both;
//! [`lifecycle`] what a stop does next, [`keep_policy`] whether it keeps agents; [`recovery`] what a boot makes of what the last one left; [`names`] says where
//! a session works; [`offers`] what of an agent's offers is chosen; [`turn_clock`] how long its turn may still take, [`worker`] what a worker does next; [`op_queue`]
//! and [`timers`] keep what is in progress and what is due, [`every`] which timers of scripts run now; [`roster`] says
//! which sessions have a worker, wait for one or must not start; [`schedule`] when things are done and tried again;
//! [`trust`] says whether the wall clock is believed.

pub mod event;
pub mod every;
pub mod keep_policy;
pub mod lifecycle;
pub mod names;
pub mod offers;
pub mod op_queue;
pub mod out_of_memory;
pub mod recovery;
pub mod roster;
pub mod schedule;
pub mod session;
pub mod settings;
pub mod timers;
pub mod trust;
pub mod turn;
pub mod turn_clock;
pub mod worker;
