//! The sample files and the manual pages say what the programs do: every setting is in them, with its
//! default, and nothing else is.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tcpcopy::config::key::{Kind, Program};
use tcpcopy::config::{Action, command, intercept, tcpcopy as online};
use tcpcopy::daemon::message_id;

const PROGRAMS: [(&Program, &str); 2] = [
    (&online::PROGRAM, env!("CARGO_BIN_EXE_tcpcopy")),
    (&intercept::PROGRAM, env!("CARGO_BIN_EXE_intercept")),
];

fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> String {
    fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// What `--print-config` says of this file, as lines of setting and origin.
fn printed(binary: &str, file: &str) -> Vec<(String, String)> {
    let output = Command::new(binary)
        .env_clear()
        .args(["--print-config", "--config", file])
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = text.lines().map(|line| line.split_once("  # ").expect("an origin"));
    lines.map(|(setting, origin)| (setting.trim_end().to_owned(), origin.to_owned())).collect()
}

/// Writes a temporary file, calls `body` with its path and removes it.
fn with_file<T>(name: &str, text: &str, body: impl FnOnce(&str) -> T) -> T {
    let path = std::env::temp_dir().join(format!("tcpcopy-documents-{}-{name}.toml", std::process::id()));
    fs::write(&path, text).expect("temporary file");
    let result = body(path.to_str().expect("UTF-8"));
    let _ = fs::remove_file(&path);
    result
}

/// The sample with every line that begins so uncommented.
fn uncommented(sample: &str, choose: impl Fn(&str) -> bool) -> String {
    let lines = sample.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if choose(rest) => rest.trim_start().to_owned(),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sample_file_changes_nothing_and_lists_every_default() {
    for (program, binary) in PROGRAMS {
        let name = format!("packaging/{}.toml", program.name);
        let sample = read(&name);
        let defaults = printed(binary, "/dev/null");

        let shipped = printed(binary, path(&name).to_str().expect("UTF-8"));
        assert_eq!(shipped, defaults, "{name} as shipped");

        let open = uncommented(&sample, |rest| !rest.is_empty() && !rest.starts_with(' '));
        let listed = with_file(program.name, &open, |file| printed(binary, file));
        for ((setting, _), (listed, origin)) in defaults.iter().zip(&listed) {
            assert_eq!(listed, setting, "{name}");
            assert_ne!(origin, "default", "{name} does not list {setting}");
        }
    }
}

#[test]
fn the_examples_in_the_sample_files_are_valid() {
    for (program, binary) in PROGRAMS {
        let sample = read(&format!("packaging/{}.toml", program.name));
        let is_example = |rest: &str| {
            let key = rest.trim_start().split(' ').next().unwrap_or_default();
            rest.starts_with(' ')
                && rest.contains(" = ")
                && program.keys.iter().any(|known| known.name == key)
        };
        let text = format!("insecure = true\n{}", uncommented(&sample, is_example));
        let status = with_file(&format!("{}-examples", program.name), &text, |file| {
            Command::new(binary)
                .env_clear()
                .args(["--check-config", "--config", file])
                .output()
                .expect("starts")
        });
        assert!(status.status.success(), "{}: {}", program.name, String::from_utf8_lossy(&status.stderr));
    }
}

#[test]
fn a_manual_page_has_every_option_and_no_other() {
    for (program, _) in PROGRAMS {
        let page = read(&format!("man/{}.8", program.name));
        let items: Vec<_> = page.lines().filter(|line| line.starts_with(".It Fl ")).collect();
        let arguments: Vec<_> =
            command(program).get_arguments().filter_map(|a| a.get_long().map(str::to_owned)).collect();
        assert!(arguments.len() > program.keys.len());
        for option in &arguments {
            let word = format!("Fl -{option}");
            let has = |line: &&&str| {
                line.split_once(&word).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(' '))
            };
            assert_eq!(items.iter().filter(has).count(), 1, "{}: --{option}", program.name);
        }
        let help = usize::from(!arguments.iter().any(|option| option == "help"));
        assert_eq!(items.len(), arguments.len() + help, "{}: an option that does not exist", program.name);

        for key in program.keys {
            assert!(page.contains(&format!(".Pq Va {}\n", key.name)), "{}: {}", program.name, key.name);
            let default = key.default.trim_matches('"');
            let is_given = matches!(key.kind, Kind::Flag | Kind::List) || page.contains(default);
            assert!(is_given, "{}: the default of {} is {default}", program.name, key.name);
            if let Some(short) = key.short {
                let item = format!(".It Fl {short} , Fl -{}", key.option);
                assert!(items.iter().any(|line| line.starts_with(&item)), "{}: {item}", program.name);
            }
        }
    }
}

/// The list of keys in the page about the file: with the default and the text of `--help`, in their order.
fn key_list(program: &Program) -> String {
    program.keys.iter().fold(String::new(), |list, key| {
        let default = key.default.replace('"', "\\(dq");
        format!("{list}.It Va {} No = Li {default}\n{}.\n", key.name, key.help)
    })
}

/// The keys that the page says only a restart changes, sorted.
fn said_to_take_a_restart(program: &Program) -> Vec<String> {
    let page = read(&format!("man/{}.8", program.name));
    let list = page.split_once("\nOnly a restart changes\n").expect("a list of keys").1;
    let list = list.split_once(';').expect("its end").0;
    let words = list.lines().filter_map(|line| line.strip_prefix(".Va ")).flat_map(str::split_whitespace);
    let mut keys: Vec<_> = words.filter(|word| *word != ",").map(str::to_owned).collect();
    keys.sort();
    keys
}

/// What a program that runs with the first of these options does not take from the others, sorted.
macro_rules! kept {
    ($program:ident, $options:expr) => {{
        let [running, others @ ..] = $options.map(|options| {
            let words = ["program", "--config", "/dev/null"].into_iter().chain(options.split_whitespace());
            match $program::Settings::load(words.map(Into::into)) {
                Ok(Action::Run(settings)) => settings,
                other => panic!("{options}: {other:?}"),
            }
        });
        let kept = others.into_iter().flat_map(|mut settings| settings.keep_fixed(&running));
        kept.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    }};
}

#[test]
fn a_manual_page_says_what_takes_a_restart() {
    let kept = kept!(
        online,
        [
            "-x 80-10.9.0.9:80 -s 127.0.0.1 --capture-source packet",
            "-x 80-10.9.0.9:80 -s 127.0.0.1 --legacy --capture-source nfqueue --pure-acks --handshake-acks=false",
            "-x 80-10.9.0.9:80 --embedded --workers 3 --queue 1 --mark 1 --sink a --table a --rules manual \
             --user root --segmentation offload",
        ]
    );
    let ports =
        kept!(online, ["-x 80-10.9.0.9:80 --embedded", "-x 80-10.9.0.9:80 --embedded --ports 2000-3000"]);
    assert_eq!(ports, ["ports"]);
    let mut all = [kept, ports].concat();
    all.sort_unstable();
    assert_eq!(said_to_take_a_restart(&online::PROGRAM), all);

    let kept = kept!(
        intercept,
        [
            "--target 10.9.0.9:80 -b 127.0.0.1",
            "--target 10.9.0.9:80 -b 127.0.0.1 --capture-source packet",
            "--target 10.9.0.9:80 -b 127.0.0.2 -p 1 --workers 3 --on-target --unclaimed accept --queue 1 \
             --accept-mark 1 --table a --rules manual --user root",
        ]
    );
    assert_eq!(said_to_take_a_restart(&intercept::PROGRAM), kept);
}

#[test]
fn the_page_of_a_file_lists_its_keys() {
    for (program, _) in PROGRAMS {
        let name = format!("man/{}.toml.5", program.name);
        let page = read(&name);
        let list = page.split_once("\n.Bl -tag -width Ds -compact\n").expect("a list of keys").1;
        let list = list.split_once(".El\n").expect("its end").0;
        let expected = key_list(program);
        assert!(list == expected, "{name}: this must be its list:\n{expected}");
    }
}

#[test]
fn the_manual_pages_have_every_message_id_and_no_other() {
    let known: Vec<_> = message_id::ALL.iter().map(|(_, id)| *id).collect();
    let pages = PROGRAMS.map(|(program, _)| read(&format!("man/{}.8", program.name)));
    let mut listed = Vec::new();
    for page in &pages {
        listed
            .extend(page.lines().filter_map(|line| line.strip_prefix(".It Li ")).filter(|id| id.len() == 32));
        let used =
            page.match_indices("MESSAGE_ID=").filter_map(|(at, word)| page.get(at + word.len()..)?.get(..32));
        listed.extend(used);
    }
    for id in &listed {
        assert!(known.contains(id), "{id} is no event's");
    }
    for (name, id) in message_id::ALL {
        assert!(listed.contains(id), "{name} ({id}) is in no manual page");
    }
}

#[test]
fn the_manual_pages_are_sound_mdoc() {
    let pages: Vec<_> =
        fs::read_dir(path("man")).expect("man").map(|entry| entry.expect("entry").path()).collect();
    assert!(pages.len() >= 5, "{pages:?}");
    match Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(&pages).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => eprintln!("the_manual_pages_are_sound_mdoc: skipped, mandoc does not run: {error}"),
    }
}

#[test]
fn the_readme_tells_c_users_about_every_option_they_lose() {
    let readme = read("README.md");
    for (program, _) in PROGRAMS {
        let heading = format!("### Options of the C `{}`", program.name);
        let (_, section) = readme.split_once(&heading).unwrap_or_else(|| panic!("no section {heading:?}"));
        let table = section.split("\n#").next().unwrap_or_default();
        for (letter, _) in program.c_options {
            assert!(table.contains(&format!("`-{letter}")), "{heading}: -{letter}");
        }
    }
}

#[test]
fn security_md_says_what_a_flow_takes() {
    let bytes = tcpcopy::router::FLOW_MEMORY;
    let all = (bytes << 18).div_ceil(1 << 20);
    let sentence = format!(
        "at up to {bytes} bytes for a flow that is claimed and one that is remembered: 262,144 of each (`max-flows`) take {all} MiB"
    );
    assert!(read("SECURITY.md").contains(&sentence), "{sentence}");
}
