//! WebAssembly modules: compiled once, run in a fresh instance for each episode, within fuel, memory and time.
//!
//! It decides what a module must have to be deployed and what its traps are called. The interpreter gets fuel in slices, so
//! that the clock is looked at between them and a module that loops for ever gives its thread back. A module can touch nothing but
//! its own memory and what `host.rs` gives it. Read [`interface`] for what that is.

mod host;
pub mod interface;

use std::time::Instant;

use steadfast_proto::episode::Task;
use wasmi::errors::{ErrorKind, InstantiationError, MemoryError, TableError};
use wasmi::{
    CompilationMode, Config, Engine, ExternType, ImportType, Linker, Module as Compiled, Store, StoreLimits,
    StoreLimitsBuilder, TrapCode, TypedResumableCall,
};

use super::{DeployError, Limits, Ran, failure, too_long};
use host::{Host, Stop};
use interface::{FUNCTIONS, MODULE, MODULE_PREFIX, VERSION_EXPORT, VERSION_EXPORT_PREFIX, signature};

/// How much fuel is given between two looks at the clock: some milliseconds' worth.
const SLICE: u64 = 2_000_000;
/// How many elements a table may have.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// A module that can be run.
#[derive(Debug)]
pub(super) struct Module {
    engine: Engine,
    compiled: Compiled,
    linker: Linker<Host>,
}

impl Module {
    pub(super) fn new(bytes: &[u8], limits: Limits) -> Result<Module, DeployError> {
        let mut config = Config::default();
        config
            .consume_fuel(true)
            // Else a module could compute outside the limits of any episode, and compile in the first of each function.
            .allow_start_fn(false)
            // The limit is for each memory, and the host looks at one.
            .wasm_multi_memory(false)
            .compilation_mode(CompilationMode::Eager);
        let engine = Engine::new(&config);
        let compiled =
            Compiled::new(&engine, bytes).map_err(|error| DeployError::NotAModule(one_line(&error)))?;
        check_version(&compiled)?;
        compiled.imports().try_for_each(|import| check_import(&import))?;
        check_exports(&compiled)?;
        let linker = host::linker(&engine);
        let module = Module { engine, compiled, linker };
        // What is too large to begin with is too large in each episode.
        let mut store = module.store(Host::idle(limits), limits);
        store.set_fuel(limits.fuel_max).map_err(|error| DeployError::Start(one_line(&error)))?;
        let started = module.linker.instantiate_and_start(&mut store, &module.compiled);
        started.map_err(|error| DeployError::Start(explain(&error, limits)))?;
        Ok(module)
    }

    /// Runs one episode; returns within its time, more or less a slice.
    pub(super) fn run(&self, task: Task, limits: Limits) -> Ran {
        let until = Instant::now() + limits.time_max;
        let mut store = self.store(Host::new(task, limits, until), limits);
        let called = self.call(&mut store, limits, until);
        let host = store.into_data();
        match called {
            Ok(()) => host.finish(),
            Err(stop) => {
                let (stop, log) = (stop.named(), host.into_log());
                Ran { result: Err(stop), log }
            }
        }
    }

    fn store(&self, host: Host, limits: Limits) -> Store<Host> {
        let mut store = Store::new(&self.engine, host);
        store.data_mut().bounds = bounds(limits);
        store.limiter(|host| &mut host.bounds);
        store
    }

    fn call(&self, store: &mut Store<Host>, limits: Limits, until: Instant) -> Result<(), Stop> {
        let stopped = |error: wasmi::Error| stop(&error, limits);
        let mut fuel = Fuel { left: limits.fuel_max, given: 0 };
        fuel.give(store, SLICE).map_err(stopped)?;
        let instance = self.linker.instantiate_and_start(&mut *store, &self.compiled).map_err(stopped)?;
        let episode = instance.get_typed_func::<(), ()>(&*store, "episode").map_err(stopped)?;
        let mut call = episode.call_resumable(&mut *store, ()).map_err(stopped)?;
        loop {
            let paused = match call {
                TypedResumableCall::Finished(()) => return Ok(()),
                TypedResumableCall::HostTrap(trap) => return Err(stop(trap.host_error(), limits)),
                TypedResumableCall::OutOfFuel(paused) => paused,
            };
            if Instant::now() >= until {
                return Err(Stop::Failed(failure(too_long(limits))));
            }
            fuel.take_back(store).map_err(stopped)?;
            if fuel.left < paused.required_fuel() || fuel.left == 0 {
                return Err(Stop::Failed(failure(explain_code(TrapCode::OutOfFuel, limits))));
            }
            fuel.give(store, paused.required_fuel().max(SLICE)).map_err(stopped)?;
            call = paused.resume(&mut *store).map_err(stopped)?;
        }
    }
}

/// What is left of an episode's fuel, beside what its store was given.
struct Fuel {
    left: u64,
    given: u64,
}

impl Fuel {
    fn give(&mut self, store: &mut Store<Host>, wanted: u64) -> Result<(), wasmi::Error> {
        self.given = wanted.min(self.left);
        self.left -= self.given;
        store.set_fuel(self.given)
    }

    /// What was not used of the last slice.
    fn take_back(&mut self, store: &Store<Host>) -> Result<(), wasmi::Error> {
        self.left += store.get_fuel()?.min(self.given);
        self.given = 0;
        Ok(())
    }
}

fn bounds(limits: Limits) -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(limits.memory_bytes_max)
        .table_elements(TABLE_ELEMENTS_MAX)
        .memories(1)
        .tables(8)
        .instances(1)
        // A module that is told "no" mostly ends in a panic that does not name the limit.
        .trap_on_grow_failure(true)
        .build()
}

/// Refuses a module of another host interface, before what else that one offered is taken for unknown.
fn check_version(module: &Compiled) -> Result<(), DeployError> {
    let other = |found: &str| Err(DeployError::HostInterface { found: found.to_owned() });
    if let Some(import) = module.imports().find(|import| {
        let version = import.module().strip_prefix(MODULE_PREFIX);
        import.module() != MODULE && version.is_some_and(is_number)
    }) {
        return other(import.module().trim_start_matches(MODULE_PREFIX));
    }
    if module.get_export(VERSION_EXPORT).is_some() {
        return Ok(());
    }
    let versions = module.exports().filter_map(|export| export.name().strip_prefix(VERSION_EXPORT_PREFIX));
    if let Some(found) = versions.filter(|version| is_number(version)).max() {
        return other(found);
    }
    let what = "export a function or a global of that name, which says that the module was compiled for host interface version 1";
    Err(DeployError::NoExport { name: VERSION_EXPORT, what })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn check_import(import: &ImportType<'_>) -> Result<(), DeployError> {
    let name = || format!("{}.{}", import.module(), import.name());
    let known = FUNCTIONS.iter().find(|(name, _, _)| import.module() == MODULE && *name == import.name());
    let Some((_, parameters, results)) = known else {
        return Err(DeployError::UnknownImport { import: name() });
    };
    let found = match import.ty() {
        ExternType::Func(found) if found.params() == *parameters && found.results() == *results => {
            return Ok(());
        }
        ExternType::Func(found) => signature(found.params(), found.results()),
        ExternType::Global(_) => "a global".to_owned(),
        ExternType::Memory(_) => "a memory".to_owned(),
        ExternType::Table(_) => "a table".to_owned(),
    };
    Err(DeployError::ImportType { import: name(), found, expected: signature(parameters, results) })
}

fn check_exports(module: &Compiled) -> Result<(), DeployError> {
    let episode = module.get_export("episode");
    let is_right = |found: &wasmi::FuncType| found.params().is_empty() && found.results().is_empty();
    if !matches!(episode, Some(ExternType::Func(found)) if is_right(&found)) {
        let what =
            "export a function of that name without parameters and results, which is called for each episode";
        return Err(DeployError::NoExport { name: "episode", what });
    }
    if !matches!(module.get_export("memory"), Some(ExternType::Memory(_))) {
        let what = "export the memory under that name, in which the host's functions read and write";
        return Err(DeployError::NoExport { name: "memory", what });
    }
    Ok(())
}

/// Why the interpreter stopped.
fn stop(error: &wasmi::Error, limits: Limits) -> Stop {
    error.downcast_ref::<Stop>().cloned().unwrap_or_else(|| Stop::Failed(failure(explain(error, limits))))
}

fn explain(error: &wasmi::Error, limits: Limits) -> String {
    let is_too_large = matches!(
        error.kind(),
        ErrorKind::Memory(MemoryError::ResourceLimiterDeniedAllocation | MemoryError::OutOfSystemMemory)
            | ErrorKind::Table(TableError::ResourceLimiterDeniedAllocation | TableError::OutOfSystemMemory)
            | ErrorKind::Instantiation(
                InstantiationError::FailedToInstantiateMemory(_)
                    | InstantiationError::FailedToInstantiateTable(_)
            )
    );
    let code = if is_too_large { Some(TrapCode::GrowthOperationLimited) } else { error.as_trap_code() };
    code.map_or_else(
        || format!("the module can not be run: {}", one_line(error)),
        |code| explain_code(code, limits),
    )
}

fn explain_code(code: TrapCode, limits: Limits) -> String {
    match code {
        TrapCode::OutOfFuel => {
            format!("the episode used up its fuel of {} instructions; it may loop for ever", limits.fuel_max)
        }
        TrapCode::GrowthOperationLimited | TrapCode::OutOfSystemMemory => {
            format!("the module wants more memory than {} bytes, which is the limit", limits.memory_bytes_max)
        }
        TrapCode::UnreachableCodeReached => {
            "the module trapped: it came to an unreachable instruction, as a program in Rust that panics does"
                .to_owned()
        }
        TrapCode::StackOverflow => "the module trapped: it calls itself too deeply".to_owned(),
        TrapCode::MemoryOutOfBounds
        | TrapCode::TableOutOfBounds
        | TrapCode::IndirectCallToNull
        | TrapCode::IntegerDivisionByZero
        | TrapCode::IntegerOverflow
        | TrapCode::BadConversionToInteger
        | TrapCode::BadSignature => format!("the module trapped: {}", code.trap_message()),
    }
}

fn one_line(error: &wasmi::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<&str>>().join(" ")
}
