//! The table of error codes that people see.
//!
//! Each code has a title, likely causes and what to do; `steadfast explain CODE` prints them and
//! `docs/reference/errors.md` is generated from them (a test fails when it is stale). A code, once released, keeps
//! its meaning for ever; add new ones at the end. What a code means for a script is its [`Exit`].

use std::fmt;
use std::str::FromStr;

/// How the process ends, stable for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// 1: the request was refused or failed.
    Refused,
    /// 2: the command line, a file or a body is wrong.
    Usage,
    /// 3: what was named is not there.
    NotFound,
    /// 4: no quorum, or the other side can't be reached now; trying later may succeed.
    Unavailable,
    /// 5: something exists already or changed meanwhile.
    Conflict,
}

impl Exit {
    /// The number the process exits with.
    pub fn number(self) -> u8 {
        match self {
            Exit::Refused => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Unavailable => 4,
            Exit::Conflict => 5,
        }
    }

    /// The HTTP status that carries it.
    pub fn http_status(self) -> u16 {
        match self {
            Exit::Refused => 422,
            Exit::Usage => 400,
            Exit::NotFound => 404,
            Exit::Unavailable => 503,
            Exit::Conflict => 409,
        }
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal, $exit:ident, $title:literal,
        causes: [$($cause:literal),* $(,)?], remedy: [$($step:literal),* $(,)?];)*) => {
        /// One thing that can be refused or go wrong, by number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])* #[doc = $title] $name,)* }

        impl Code {
            /// Every code, in the order of the numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The number after `SF-`.
            pub fn number(self) -> u16 { match self { $(Code::$name => $number),* } }
            /// How a process ends that met it.
            pub fn exit(self) -> Exit { match self { $(Code::$name => Exit::$exit),* } }
            /// What happened, in one line.
            pub fn title(self) -> &'static str { match self { $(Code::$name => $title),* } }
            /// Likely causes, the likeliest first.
            pub fn causes(self) -> &'static [&'static str] { match self { $(Code::$name => &[$($cause),*]),* } }
            /// What to do, in this order.
            pub fn remedy(self) -> &'static [&'static str] { match self { $(Code::$name => &[$($step),*]),* } }
        }
    };
}

codes! {
    ConfigInvalid = 1, Usage, "the configuration file is wrong",
        causes: ["a key is misspelt or unknown", "a value has the wrong type or unit", "the file is not TOML or can't be read"],
        remedy: ["correct each problem listed (all of them are listed, with key and line)", "compare with the example in `steadfast agent --help`"];
    SpecInvalid = 2, Usage, "the container's spec is wrong",
        causes: ["a key of the spec file or a flag of `run` is unknown or has the wrong unit", "the command is missing"],
        remedy: ["correct each problem listed", "compare with the example in `steadfast run --help`"];
    AgentUnreachable = 3, Unavailable, "the agent on this machine does not answer",
        causes: ["no agent is running", "it uses another socket (another `data` folder, or `[api] socket`)", "the socket belongs to another user"],
        remedy: ["`systemctl start steadfast`, or `steadfast agent --config FILE`", "name the socket: `--socket PATH` or STEADFAST_SOCKET", "run the command as the agent's user (root)"];
    NotConfigured = 4, Refused, "this node belongs to no cluster yet",
        causes: ["neither `steadfast init` nor `steadfast join` was run with this data folder", "the `data` key names another folder", "the cluster has no invitation of the token's name"],
        remedy: ["first node: `steadfast init NAME`", "further nodes: `steadfast invite NAME` on a member, then `steadfast join TOKEN` here"];
    AlreadyMember = 5, Conflict, "this node is a member of a cluster already",
        causes: ["`init` or `join` was run before with this data folder", "this machine's identity has a row in the cluster under another name"],
        remedy: ["start the agent: `steadfast agent`", "to make a new node, give it another `data` folder in its configuration", "to let the same machine bear a new name: `steadfast join TOKEN --rebind`"];
    StateInUse = 6, Conflict, "another process uses this data folder",
        causes: ["an agent runs with it already", "two configurations name the same `data` folder"],
        remedy: ["stop the other agent, or give this one its own `data` folder"];
    NotRoot = 7, Refused, "this needs root",
        causes: ["containers, name spaces and checkpoints need root's capabilities"],
        remedy: ["run it as root (sudo), or use the packaged systemd unit", "`steadfast check` lists what is missing"];
    ToolMissing = 8, Refused, "a program that Steadfast needs is not usable",
        causes: ["runc or nft is not installed", "it is not on the PATH and not named in the configuration"],
        remedy: ["`apt-get install runc nftables iproute2`, or `cargo xtask setup` from a checkout", "name it in the configuration: `[container] runc = \"/path\"`"];
    CriuUnusable = 9, Refused, "no CRIU here passes the self-test",
        causes: ["CRIU is not installed", "it is too old for this kernel (`criu check` passes all the same)"],
        remedy: ["`cargo xtask setup` unpacks one that works under /opt/steadfast", "name it: `[container] criu = \"/path/to/criu\"`", "`steadfast check` repeats the self-test and prints CRIU's reason"];
    ContainerNotFound = 10, NotFound, "there is no container of that name",
        causes: ["a misspelt name", "it was removed"],
        remedy: ["`steadfast ps` lists the names"];
    NodeNotFound = 11, NotFound, "there is no node of that name",
        causes: ["a misspelt name", "the node has not joined"],
        remedy: ["`steadfast nodes` lists the names"];
    NameTaken = 12, Conflict, "the name is in use",
        causes: ["a container or node has this name already"],
        remedy: ["choose another name", "or remove the first: `steadfast rm NAME`"];
    NoQuorum = 13, Unavailable, "there is no majority of the catalog's voters",
        causes: ["more than half of the nodes are down or cut off", "this node is on the minority side of a split"],
        remedy: ["`steadfast status` says who is missing", "bring nodes or networks back: containers thaw by themselves", "nothing was changed; try again then"];
    CheckpointFailed = 14, Refused, "the checkpoint could not be taken",
        causes: ["the program uses something CRIU can't image (io_uring, a device, ...); the message quotes CRIU", "the lease ran out while it was under way"],
        remedy: ["the program goes on running and the last committed checkpoint is whole", "`steadfast check PID` says what in the program does not qualify"];
    NoCheckpointMemory = 15, Refused, "the other nodes lend too little checkpoint memory",
        causes: ["the program is larger than what the others lend", "there is no other node in the view", "older checkpoints of other containers fill it"],
        remedy: ["raise `[checkpoint] memory` on other nodes and restart their agents", "add a node", "nothing was lost: the last committed checkpoint is whole"];
    CheckpointNotFound = 16, NotFound, "there is no such checkpoint",
        causes: ["a wrong number", "it was replaced: the latest and its parent are kept", "none has been committed yet"],
        remedy: ["`steadfast checkpoints NAME` lists them"];
    CheckpointLost = 17, Refused, "no node holds a whole copy of the checkpoint",
        causes: ["every machine that held a copy lost its memory", "a chunk is corrupt in every copy"],
        remedy: ["`steadfast checkpoints NAME` says what each node holds", "restore its parent: `steadfast restore NAME --checkpoint N`", "or start fresh: `steadfast rm NAME` and `steadfast run` again"];
    WrongState = 18, Conflict, "the container is in a state that does not allow this",
        causes: ["it is not running, or still running", "a recovery is under way"],
        remedy: ["`steadfast ps` shows the state", "stop it first (`steadfast stop NAME`) or wait"];
    TokenInvalid = 19, Usage, "the join token can't be read",
        causes: ["it was cut off or changed when it was copied", "it is not a join token"],
        remedy: ["copy it again, whole: it is one line that starts with sfj1-", "or make another: `steadfast invite NAME`"];
    TokenUsed = 20, Conflict, "the join token was used already",
        causes: ["another node joined with it", "two nodes raced for it and the other won"],
        remedy: ["make one token per node: `steadfast invite NAME`"];
    TokenExpired = 21, Refused, "the join token has expired",
        causes: ["more time has passed than `invite --valid` allowed", "a clock is wrong"],
        remedy: ["make another: `steadfast invite NAME`"];
    IdentityCloned = 22, Conflict, "two machines claim the same node identity",
        causes: ["a disk or data folder with the identity in it was copied to another machine"],
        remedy: ["on the copy: `steadfast reidentify`, then join with a token of its own", "the original is not affected"];
    WrongCluster = 23, Refused, "the other side belongs to another cluster",
        causes: ["the token is of another cluster", "an address now belongs to another cluster's node"],
        remedy: ["make a token on a member of the cluster to be joined", "correct the addresses"];
    PeerUnreachable = 24, Unavailable, "the node that must do this can't be reached",
        causes: ["it is down or cut off, and the cluster has not decided yet", "its agent is restarting"],
        remedy: ["`steadfast status` says what is suspected", "try again after the removal or when it is back"];
    StartFailed = 25, Refused, "the container could not be started",
        causes: ["the command is not there or not executable in its root", "a volume's source is missing", "the message quotes runc"],
        remedy: ["correct the command or spec and run it again", "`steadfast logs NAME` shows what it printed"];
    NoEligibleNode = 26, Refused, "no node can take the container",
        causes: ["every candidate lacks memory, the files of root `host`, or a compatible CRIU", "the node named by --node is not in the view"],
        remedy: ["`steadfast nodes` shows the view", "name another node, or none"];
    AddressTaken = 27, Conflict, "the container's address is in use",
        causes: ["another machine answers for it on the network", "another container has it"],
        remedy: ["choose another address", "stop what holds it (the message names its hardware address or container)"];
    TimedOut = 28, Unavailable, "it did not happen within the time allowed",
        causes: ["the cluster is busy or loses nodes just now"],
        remedy: ["`steadfast status` and `steadfast ps` show how it stands: it may still happen", "repeat the command, or give it more time with --timeout"];
    StateCorrupt = 29, Refused, "a file in the data folder is damaged",
        causes: ["a failing disk", "the file was edited or copied in part"],
        remedy: ["nothing of it was used; the message names the file", "empty the data folder and join this node anew: the others have the catalog"];
    DiskFailed = 30, Refused, "the disk or file system refused",
        causes: ["no space is left", "it is mounted read-only", "permissions"],
        remedy: ["free some space or correct the permissions; the message names the file", "then repeat the command: what was half done is not counted"];
    BadRequest = 31, Usage, "the request is malformed",
        causes: ["a field of the JSON body is missing, unknown or has the wrong type", "client and agent differ in version"],
        remedy: ["correct the field that the message names", "the document at /v1/openapi.json describes every request"];
    NotAllowed = 32, Refused, "this is not allowed to the caller",
        causes: ["the other side is not a member of this cluster, or was removed from it", "the secret of the token does not fit", "a program in a container asked for more than concerns itself"],
        remedy: ["use the local socket as its owner (root)", "make another token"];
    Internal = 33, Refused, "a defect in Steadfast",
        causes: ["a case that nobody thought of"],
        remedy: ["please report it with the agent's log around that moment"];
    CodeUnknown = 34, NotFound, "there is no such error code",
        causes: ["a misspelt code"],
        remedy: ["codes look like SF-0013; `steadfast explain --all` lists them"];
    FilesDiffer = 35, Refused, "files that the program has mapped differ on that node",
        causes: ["with root `host` the nodes have different versions of a program or library"],
        remedy: ["bring the machines to the same packages", "or use `--root bundle:PATH`, which takes its files along"];
    NameInvalid = 36, Usage, "the name is not allowed",
        causes: ["names have 1 to 63 characters: small letters, digits and -, starting and ending with a letter or digit"],
        remedy: ["choose a name like `web-1`"];
    NetworkFailed = 37, Refused, "an address of this node can't be used",
        causes: ["no interface has the address", "the port is taken by another process"],
        remedy: ["correct `address` of the `[[network]]` named", "see who has the port: `ss -lntup`"];
    NothingToExec = 38, Refused, "the command could not be started in the container",
        causes: ["it is not there or not executable in the container's root"],
        remedy: ["name it with its whole path as seen inside the container"];
    BedFailed = 39, Refused, "the demo or the test bed could not go on",
        causes: ["a program that the test bed needs (ip, nft) is missing or refused", "an agent of the test bed did not do what it was asked for"],
        remedy: ["read the sentence; it names the host and the command", "look at the agents' logs: `steadfast bed list` names them"];
    ObservesOnly = 40, Refused, "this node only observes",
        causes: ["its configuration says mode = \"observe\": it takes part in membership, detection, links and events, and in nothing that concerns containers"],
        remedy: ["give the command on a node that runs containers", "or set mode = \"agent\" under [node], as root, and restart this agent"];
    TooMany = 41, Unavailable, "too many followers are there at once",
        causes: ["programs that follow changes open new streams and do not close the old ones"],
        remedy: ["close streams that nobody reads", "or ask with `wait` and `since` instead of following a stream"];
    PlanInvalid = 42, Usage, "the simulation can't be carried out as described",
        causes: ["a flag or a key of the file is misspelt or has the wrong unit", "a fault names a node or network that is not there, or begins after the end"],
        remedy: ["correct each problem listed", "compare with the examples in `steadfast simulate --help`"];
    NodeBusy = 43, Unavailable, "this node has too many questions to answer",
        causes: ["programs ask its API faster than it answers", "the machine is too busy for its agent"],
        remedy: ["ask again in a moment: nothing was changed", "follow a stream (`/v1/links/events`, `/v1/verdicts/events`) or use `wait` instead of asking again and again"];
    IdentityConflict = 44, Conflict, "another node of the cluster has this identity or address",
        causes: ["two configurations give the same address, or one machine took over another's", "a misspelt address"],
        remedy: ["give the node an address of its own: `address` of the `[[network]]` named", "if the other node is gone for good, remove it: `steadfast keys revoke NAME`"];
    NodeIsMember = 45, Conflict, "the node is a member of the view",
        causes: ["its agent runs, or was removed so lately that the view does not say so yet"],
        remedy: ["stop its agent and wait until `steadfast nodes` shows it as removed", "then repeat the command"];
    KeysBusy = 46, Conflict, "the cluster's keys are being rotated by somebody else",
        causes: ["`steadfast keys rotate` or `keys revoke` runs at the same time, here or on another node"],
        remedy: ["`steadfast keys` shows how far it is", "when no rotation is under way, repeat the command if it is still wanted"];
    DeviceNotFound = 47, NotFound, "no node sees that device, or no device has that name",
        causes: ["a misspelt id or name", "the device is not plugged in, or `[devices] include` leaves it out", "it says nothing of itself, so it can't be told from others"],
        remedy: ["`steadfast device list` shows what is seen, and what is not identified on this node", "ask on a node that sees it", "a disk without an identity gets one by a partition table, a file system or `steadfast device label`"];
    DevicesAlike = 48, Conflict, "several devices say that they are the same one",
        causes: ["a copy of a disk: a snapshot, a clone, an image written twice", "two nodes see private disks that were made from one image"],
        remedy: ["give the copy an identity of its own (the tool that made the file system, or the partition table, does)", "or unplug it; nothing was changed"];
    DeviceNameRefused = 49, Conflict, "the device can't get or lose that name",
        causes: ["another device bears the name, or bore it once: names are never given to a second device", "the device has a name already", "a container asks for the device by that name"],
        remedy: ["choose another name", "`steadfast device rename OLD NEW` changes a name"];
    DeviceNameInvalid = 50, Usage, "the device's name or id is not allowed",
        causes: ["names have 1 to 64 letters, digits, `.`, `_` and `-`, and begin with a letter or digit", "names that begin with `disk-` are automatic ones only", "ids look like `naa:5000c500a1b2c3d4`"],
        remedy: ["choose a name like `data1`", "copy the id from `steadfast device list`"];
    DevicesUnusable = 51, Refused, "this node takes no part in device names",
        causes: ["it observes or is a witness", "`[devices] include = []` in its configuration", "its agent does not run as root"],
        remedy: ["give the command on another node", "or change the configuration and restart this agent"];
    CandidateNotReady = 52, Conflict, "the candidate is not ready",
        causes: ["its probation is not over yet", "it was eliminated", "its agent does not run, or it became a member by itself"],
        remedy: ["`steadfast nodes --evidence` shows every criterion", "for a machine that waits in readiness: `standby = true` in its [node]", "one that was eliminated applies anew when its agent is started again"];
    ReplaceRefused = 53, Refused, "the node can't be replaced, or leave, like that",
        causes: ["a node can't take its own place", "the place is taken, or there is none", "what runs there can't go on elsewhere"],
        remedy: ["`steadfast nodes` lists members and candidates", "`steadfast drain NAME` hands containers over to other members first"];
    GroupNotFound = 54, NotFound, "there is no process group of that name",
        causes: ["a misspelt name", "its program has not founded it yet"],
        remedy: ["`steadfast groups` lists the names", "start the program that founds the group"];
    GroupReplaceRefused = 55, Refused, "the member of the group can't be replaced like that",
        causes: ["the first is no full member, or the second is one already", "the second does not wait for a place, or has stopped waiting", "another replacement is under way in the group"],
        remedy: ["`steadfast groups` lists the members and who waits", "start the second process as a standby of the group", "nothing was changed"];
    GroupRowRefused = 56, Conflict, "the group's row can't be what was asked for",
        causes: ["the program writes a view that does not follow the one that is there", "the cluster has as many groups as are possible", "a life of the process that waits is not its newest"],
        remedy: ["`steadfast groups` shows the view that is there", "start each life of a process with a higher incarnation"];
    TokenNotFound = 57, NotFound, "there is no token of that name",
        causes: ["a misspelt name", "it was revoked"],
        remedy: ["`steadfast tokens` lists the names"];
    InstanceNotFound = 58, NotFound, "there is no instance of that name",
        causes: ["a misspelt name", "it has not begun, or ended so long ago that it is forgotten"],
        remedy: ["`steadfast episode list` lists the names", "`steadfast episode start PROGRAM/KEY` begins one"];
    ProgramNotFound = 59, NotFound, "there is no such program, or no such version of it",
        causes: ["a misspelt name", "it has not been deployed"],
        remedy: ["`steadfast episode deploy` without a name lists programs and versions", "`steadfast episode deploy NAME` deploys one"];
    InstanceState = 60, Conflict, "the instance is in a state that does not allow this",
        causes: ["there is one of that name already", "it has ended"],
        remedy: ["`steadfast episode show PROGRAM/KEY` shows the state", "choose another key"];
    KeyReused = 61, Conflict, "the idempotency key was used for something else",
        causes: ["a client uses a key twice for requests that differ"],
        remedy: ["use a new key for each new request; only a repetition has the same", "nothing was changed"];
    InstanceFull = 62, Unavailable, "too much waits for the instance already",
        causes: ["events come faster than its program takes them", "it is paused, or its episodes fail", "more requests with idempotency keys come than can be remembered"],
        remedy: ["`steadfast episode show PROGRAM/KEY` says what it waits for", "try again when it has caught up; nothing was changed"];
    ProgramRefused = 63, Usage, "the program can't be deployed",
        causes: ["it is no WebAssembly module, or compiled for another host interface", "the address of the end point, or the command, is misspelt or not on this node", "it is larger than a row of the catalog"],
        remedy: ["correct what the message names", "`steadfast episode deploy --help` shows examples"];
    ProgramTaken = 64, Conflict, "the version of the program is another one already",
        causes: ["a version was deployed before with other contents"],
        remedy: ["leave `--version` out: the next free one is taken", "versions never change, since instances go on with the one that they began with"];
    InstanceNameInvalid = 65, Usage, "the name of the instance or program is not allowed",
        causes: ["instances are called PROGRAM/KEY, such as order/17", "programs have 1 to 63 of a-z, 0-9, `-` and `.`, beginning with a letter"],
        remedy: ["choose a name like `order/17`"];
    EpisodesFailed = 66, Refused, "this node runs no episodes any more",
        causes: ["its disk failed or is full: nothing may be promised any more that is not written", "a file of the store is damaged"],
        remedy: ["`steadfast status` and the agent's log say why", "free some space or mend the disk, then restart this agent: it goes on where the log ends"];
    OperationNotFound = 67, NotFound, "there is no operation of that name",
        causes: ["the name is misspelled", "it ended more than an hour ago"],
        remedy: ["`steadfast operations` lists those that run and those of the last hour", "`steadfast events --since 1d` says what happened before"];
    SharedStore = 68, Unavailable, "the shared store of instances can't be used now",
        causes: ["PostgreSQL is down, or this node does not reach it", "the configuration of this node has no [episodes.shared]", "the tables are another cluster's or another version's"],
        remedy: ["`steadfast status` says why", "mend the database or its address: every agent tries again by itself and goes on where it was"];
    Mirror = 69, Unavailable, "mirrored instances can't be used now",
        causes: ["a node was lost a moment ago, and others are taking its instances over", "both nodes that have copies of them are down or out of reach"],
        remedy: ["try again in a second, with an Idempotency-Key", "`steadfast status` says what is missing: start one of the nodes again that had the copies"];
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SF-{:04}", self.number())
    }
}

/// A text that is not a code.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is not an error code; codes look like SF-0013")]
pub struct ParseCodeError(String);

impl FromStr for Code {
    type Err = ParseCodeError;

    /// Accepts `SF-0013`, `sf-13` and `13`.
    fn from_str(text: &str) -> Result<Code, ParseCodeError> {
        let upper = text.trim().to_ascii_uppercase();
        let digits = upper.strip_prefix("SF-").or_else(|| upper.strip_prefix("SF")).unwrap_or(&upper);
        let number = digits.parse::<u16>().map_err(|_| ParseCodeError(text.into()))?;
        Code::ALL
            .iter()
            .copied()
            .find(|code| code.number() == number)
            .ok_or_else(|| ParseCodeError(text.into()))
    }
}

/// The page of one code, as `explain` prints it and the reference shows it.
pub fn page(code: Code) -> String {
    let mut page =
        format!("## {code}: {}\n\nExit code {}.\n\nLikely causes:\n", code.title(), code.exit().number());
    for cause in code.causes() {
        page.push_str(&format!("- {cause}\n"));
    }
    page.push_str("\nWhat to do:\n");
    for step in code.remedy() {
        page.push_str(&format!("- {step}\n"));
    }
    page
}

/// The whole reference page, `docs/reference/errors.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Error codes\n\nGenerated from `crates/steadfast-cli/src/codes.rs`; `steadfast explain CODE` prints the same.\n",
    );
    for code in Code::ALL {
        text.push('\n');
        text.push_str(&page(*code));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_contiguous_and_parse_back() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), index + 1, "{code} is out of order");
            assert_eq!(code.to_string().parse::<Code>().unwrap(), *code);
            assert!(!code.causes().is_empty() && !code.remedy().is_empty());
        }
        assert_eq!("13".parse::<Code>().unwrap(), Code::NoQuorum);
        assert!("SF-9999".parse::<Code>().is_err());
    }
}
