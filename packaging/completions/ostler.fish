# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_ostler_global_optspecs
    string join \n socket= url= token-file= h/help V/version
end

function __fish_ostler_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_ostler_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_ostler_using_subcommand
    set -l cmd (__fish_ostler_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c ostler -n "__fish_ostler_needs_command" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_needs_command" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_needs_command" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_needs_command" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_needs_command" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "serve" -d 'Run the daemon in the foreground; its log goes to stderr'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "chat" -d 'Talk to an agent; answers stream, and the conversation survives a restart of the daemon'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "send" -d 'Send one message and print the answer, even if the daemon restarts meanwhile'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "sessions" -d 'List sessions'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "ls" -d 'List sessions'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "show" -d 'Show a session'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "transcript" -d 'Print the transcript of a session'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "logs" -d 'Print the transcript of a session'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "events" -d 'Print the events of a session'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "export" -d 'Write a whole transcript as Markdown, or as JSON Lines with --json'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "cancel" -d 'Cancel the running turn'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "reset" -d 'End the session; the next message begins a new one'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "suspend" -d 'Quarantine a session: it runs no more turns, and the next message begins a new session'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "resume" -d 'Bring back a suspended session, or continue an interrupted one'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "delete" -d 'Delete a session and its transcript'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "rm" -d 'Delete a session and its transcript'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "permissions" -d 'List the permissions that agents are waiting for'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "allow" -d 'Allow an agent\'s request, once if the agent offers that'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "deny" -d 'Deny an agent\'s request'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "hold" -d 'Accept messages but start no turns, until `release`'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "release" -d 'Start turns again after `hold`'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "status" -d 'Show the daemon\'s status, and what a stop is waiting for'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "top" -d 'Show what agents\' processes use: memory, processor time, processes; live on a terminal'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "stop" -d 'Stop the daemon and wait until it has exited; without a daemon, end what its agents left running'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "restart" -d 'Restart the daemon, by its service manager or in its own process, and wait until it is ready'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "reload" -d 'Reload configuration and hooks'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "report" -d 'Show the report of a stop, from the database if no daemon runs'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "hooks" -d 'Manage hooks'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "check-config" -d 'Check a configuration file'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "doctor" -d 'Check for problems and suggest fixes'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "backup" -d 'Make a consistent copy of the database while the daemon runs'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "restore" -d 'Replace the database with a backup while the daemon is down; the present database is kept under another name'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "completions" -d 'Print shell completions'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "complete" -d 'Print the keys that complete a command line, for the shells\' completions'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "generate" -d 'Make files for packages'
complete -c ostler -n "__fish_ostler_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l config -d 'Configuration file [default: $OSTLER_CONFIG, the user\'s, /etc/ostler/ostler.toml]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l state-dir -d 'State directory [default: $STATE_DIRECTORY, $XDG_STATE_HOME/ostler]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l socket -d 'Socket to create [default: $OSTLER_SOCKET, or by $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, the state directory]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l replace -d 'Replace the daemon that runs on this state directory'
complete -c ostler -n "__fish_ostler_using_subcommand serve" -l no-resume -d 'Do not resume interrupted turns (for the first start from a backup)'
complete -c ostler -n "__fish_ostler_using_subcommand serve" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand serve" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand chat" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand chat" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand chat" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand chat" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand chat" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand send" -l id -d 'The message\'s id; a message whose id was sent before is not run again [default: a new id]' -r
complete -c ostler -n "__fish_ostler_using_subcommand send" -l timeout -d 'Wait this long for the answer; "never" waits for ever' -r
complete -c ostler -n "__fish_ostler_using_subcommand send" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand send" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand send" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand send" -l no-wait -d 'Do not wait for the answer'
complete -c ostler -n "__fish_ostler_using_subcommand send" -l json -d 'Print one JSON object with the outcome and the answer; with --no-wait the API\'s JSON. Errors too'
complete -c ostler -n "__fish_ostler_using_subcommand send" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand send" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l state -d 'Only sessions in these states: live, parked, suspended, ended, running, resume_pending [default: all but ended]' -r
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l key -d 'Only sessions under this key; --state ended lists its past sessions' -r
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l limit -d 'At most this many' -r
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -s q -l quiet -d 'Print ids only'
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -s w -l wide -d 'Print every column, however wide the terminal is'
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand sessions" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l state -d 'Only sessions in these states: live, parked, suspended, ended, running, resume_pending [default: all but ended]' -r
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l key -d 'Only sessions under this key; --state ended lists its past sessions' -r
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l limit -d 'At most this many' -r
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand ls" -s q -l quiet -d 'Print ids only'
complete -c ostler -n "__fish_ostler_using_subcommand ls" -s w -l wide -d 'Print every column, however wide the terminal is'
complete -c ostler -n "__fish_ostler_using_subcommand ls" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand ls" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand ls" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand show" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand show" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand show" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand show" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand show" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand show" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -l after -d 'Only entries after this one' -r
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -l limit -d 'At most this many entries' -r
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -s n -l tail -d 'Only the last N entries' -r
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -s f -l follow -d 'Keep printing new entries, even after a restart of the daemon; with --json one per line'
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand transcript" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand logs" -l after -d 'Only entries after this one' -r
complete -c ostler -n "__fish_ostler_using_subcommand logs" -l limit -d 'At most this many entries' -r
complete -c ostler -n "__fish_ostler_using_subcommand logs" -s n -l tail -d 'Only the last N entries' -r
complete -c ostler -n "__fish_ostler_using_subcommand logs" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand logs" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand logs" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand logs" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand logs" -s f -l follow -d 'Keep printing new entries, even after a restart of the daemon; with --json one per line'
complete -c ostler -n "__fish_ostler_using_subcommand logs" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand logs" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand events" -l after -d 'Only events after this one [default: the oldest kept; with --follow: from now on]' -r
complete -c ostler -n "__fish_ostler_using_subcommand events" -s n -l tail -d 'Only the last N events; with --follow, begin with them' -r
complete -c ostler -n "__fish_ostler_using_subcommand events" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand events" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand events" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand events" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand events" -s f -l follow -d 'Keep printing new events, even after a restart of the daemon'
complete -c ostler -n "__fish_ostler_using_subcommand events" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand events" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand export" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand export" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand export" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand export" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand export" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand export" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -l queued -d 'Cancel the queued messages instead of the running turn'
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand cancel" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand reset" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand reset" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand reset" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand reset" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand reset" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand reset" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand suspend" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand suspend" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand suspend" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand suspend" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand suspend" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand suspend" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand resume" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand resume" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand resume" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand resume" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand resume" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand resume" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand delete" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand delete" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand delete" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand delete" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand delete" -l all -d 'Delete every session that was ever under the key'
complete -c ostler -n "__fish_ostler_using_subcommand delete" -l files -d 'Delete the agent\'s working directory too'
complete -c ostler -n "__fish_ostler_using_subcommand delete" -s y -l yes -d 'Do not ask'
complete -c ostler -n "__fish_ostler_using_subcommand delete" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand delete" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand rm" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand rm" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand rm" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand rm" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand rm" -l all -d 'Delete every session that was ever under the key'
complete -c ostler -n "__fish_ostler_using_subcommand rm" -l files -d 'Delete the agent\'s working directory too'
complete -c ostler -n "__fish_ostler_using_subcommand rm" -s y -l yes -d 'Do not ask'
complete -c ostler -n "__fish_ostler_using_subcommand rm" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand rm" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand permissions" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand permissions" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand permissions" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand permissions" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand permissions" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand permissions" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand allow" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand allow" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand allow" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand allow" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand allow" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand allow" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand deny" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand deny" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand deny" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand deny" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand deny" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand deny" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hold" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hold" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hold" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hold" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hold" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hold" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand release" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand release" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand release" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand release" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand release" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand release" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand status" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand status" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand status" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand status" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand status" -s w -l watch -d 'Keep showing the status until the daemon has exited; with --json one line per change, at most one per second'
complete -c ostler -n "__fish_ostler_using_subcommand status" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand status" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand top" -l sort -d 'What comes first' -r -f -a "memory\t'Most memory'
cpu\t'Most processor time since the last look'
processes\t'Most processes'
key\t'By key'"
complete -c ostler -n "__fish_ostler_using_subcommand top" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand top" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand top" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand top" -l once -d 'Show it once, on a terminal too'
complete -c ostler -n "__fish_ostler_using_subcommand top" -l json -d 'Print the API\'s JSON once; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c ostler -n "__fish_ostler_using_subcommand top" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l state-dir -d 'Without a daemon: end the agents of this state directory [default: the one that `serve` would use]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l fast -d 'Interrupt running turns instead of waiting for them'
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l now -d 'Kill the agents, close the database and exit'
complete -c ostler -n "__fish_ostler_using_subcommand stop" -l keep -d 'Let the agents work on; the next daemon takes them up if it starts within [agents] orphan_after'
complete -c ostler -n "__fish_ostler_using_subcommand stop" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand stop" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand restart" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand restart" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand restart" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand restart" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand restart" -l end -d 'End the agents, which a restart keeps otherwise'
complete -c ostler -n "__fish_ostler_using_subcommand restart" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand restart" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand reload" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand reload" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand reload" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand reload" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand reload" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand reload" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand report" -l state-dir -d 'Without a daemon: read this state directory [default: the one that `serve` would use]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand report" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand report" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand report" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand report" -l all -d 'List all reports'
complete -c ostler -n "__fish_ostler_using_subcommand report" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand report" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand report" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "list" -d 'List registered handlers with their calls, failures and times'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "check" -d 'Load scripts as the daemon would; no daemon is needed'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "fire" -d 'Call the handlers with a sample event (ev.test = true), which is never journalled'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "failed" -d 'List events that were set aside after repeated failures'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "retry" -d 'Deliver set-aside events once more'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "discard" -d 'Discard events that were set aside'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and not __fish_seen_subcommand_from list check fire failed retry discard help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from list" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from list" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from list" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from list" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from list" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -l config -d 'Configuration file, for [hooks] and its limits' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -l json -d 'Print JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from check" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l fields -d 'A JSON object of fields that replace the sample\'s; - reads it from stdin' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l script -d 'Call this script; no daemon is needed' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l config -d 'With --script: configuration file, for [hooks] and its limits' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from fire" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from failed" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from failed" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from failed" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from failed" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from failed" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from failed" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -l all -d 'All of them'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -l json -d 'Print JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from retry" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -l all -d 'All of them'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -l json -d 'Print JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from discard" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "list" -d 'List registered handlers with their calls, failures and times'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "check" -d 'Load scripts as the daemon would; no daemon is needed'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "fire" -d 'Call the handlers with a sample event (ev.test = true), which is never journalled'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "failed" -d 'List events that were set aside after repeated failures'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "retry" -d 'Deliver set-aside events once more'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "discard" -d 'Discard events that were set aside'
complete -c ostler -n "__fish_ostler_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -l show -d 'Print the configuration in force, every key with its value; secrets are not shown'
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -l json -d 'Print JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand check-config" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l config -d 'Configuration file [default: the one that `serve` would use]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l state-dir -d 'State directory [default: the one that `serve` would use]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l end-agents -d 'Without a daemon: end what its agents left running'
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand doctor" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand backup" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand backup" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand backup" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand backup" -l json -d 'Print the API\'s JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand backup" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand backup" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand restore" -l config -d 'Configuration file [default: the one that `serve` would use]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand restore" -l state-dir -d 'State directory [default: the one that `serve` would use]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand restore" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand restore" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand restore" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand restore" -s y -l yes -d 'Do not ask'
complete -c ostler -n "__fish_ostler_using_subcommand restore" -l json -d 'Print JSON; errors too'
complete -c ostler -n "__fish_ostler_using_subcommand restore" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand restore" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand completions" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand completions" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand completions" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand completions" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand completions" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand complete" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand complete" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand complete" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand complete" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand complete" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -f -a "files" -d 'All generated files of packaging/: manual pages, completions, the commented sample configuration'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -f -a "config" -d 'The commented sample configuration'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and not __fish_seen_subcommand_from files config help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from files" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from files" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from files" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from files" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from files" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from config" -l socket -d 'The daemon\'s socket [default: $OSTLER_SOCKET, else the user\'s socket, else the service\'s]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from config" -l url -d 'The daemon\'s URL, such as http://127.0.0.1:7411, instead of a socket [default: $OSTLER_URL]' -r
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from config" -l token-file -d 'File with the bearer token for the URL [default: $OSTLER_TOKEN_FILE]' -r -F
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from config" -s h -l help -d 'Print help'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from config" -s V -l version -d 'Print version'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "files" -d 'All generated files of packaging/: manual pages, completions, the commented sample configuration'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "config" -d 'The commented sample configuration'
complete -c ostler -n "__fish_ostler_using_subcommand generate; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "serve" -d 'Run the daemon in the foreground; its log goes to stderr'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "chat" -d 'Talk to an agent; answers stream, and the conversation survives a restart of the daemon'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "send" -d 'Send one message and print the answer, even if the daemon restarts meanwhile'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "sessions" -d 'List sessions'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "show" -d 'Show a session'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "transcript" -d 'Print the transcript of a session'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "events" -d 'Print the events of a session'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "export" -d 'Write a whole transcript as Markdown, or as JSON Lines with --json'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "cancel" -d 'Cancel the running turn'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "reset" -d 'End the session; the next message begins a new one'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "suspend" -d 'Quarantine a session: it runs no more turns, and the next message begins a new session'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "resume" -d 'Bring back a suspended session, or continue an interrupted one'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "delete" -d 'Delete a session and its transcript'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "permissions" -d 'List the permissions that agents are waiting for'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "allow" -d 'Allow an agent\'s request, once if the agent offers that'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "deny" -d 'Deny an agent\'s request'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "hold" -d 'Accept messages but start no turns, until `release`'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "release" -d 'Start turns again after `hold`'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "status" -d 'Show the daemon\'s status, and what a stop is waiting for'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "top" -d 'Show what agents\' processes use: memory, processor time, processes; live on a terminal'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "stop" -d 'Stop the daemon and wait until it has exited; without a daemon, end what its agents left running'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "restart" -d 'Restart the daemon, by its service manager or in its own process, and wait until it is ready'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "reload" -d 'Reload configuration and hooks'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "report" -d 'Show the report of a stop, from the database if no daemon runs'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "hooks" -d 'Manage hooks'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "check-config" -d 'Check a configuration file'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "doctor" -d 'Check for problems and suggest fixes'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "backup" -d 'Make a consistent copy of the database while the daemon runs'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "restore" -d 'Replace the database with a backup while the daemon is down; the present database is kept under another name'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "completions" -d 'Print shell completions'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "complete" -d 'Print the keys that complete a command line, for the shells\' completions'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "generate" -d 'Make files for packages'
complete -c ostler -n "__fish_ostler_using_subcommand help; and not __fish_seen_subcommand_from serve chat send sessions show transcript events export cancel reset suspend resume delete permissions allow deny hold release status top stop restart reload report hooks check-config doctor backup restore completions complete generate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "list" -d 'List registered handlers with their calls, failures and times'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "check" -d 'Load scripts as the daemon would; no daemon is needed'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "fire" -d 'Call the handlers with a sample event (ev.test = true), which is never journalled'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "failed" -d 'List events that were set aside after repeated failures'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "retry" -d 'Deliver set-aside events once more'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "discard" -d 'Discard events that were set aside'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from generate" -f -a "files" -d 'All generated files of packaging/: manual pages, completions, the commented sample configuration'
complete -c ostler -n "__fish_ostler_using_subcommand help; and __fish_seen_subcommand_from generate" -f -a "config" -d 'The commented sample configuration'

complete -c ostler -a "(ostler complete -- (commandline -opc) (commandline -ct) 2>/dev/null)"
