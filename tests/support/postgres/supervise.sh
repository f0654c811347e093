# Keeps one throw-away PostgreSQL, and removes every trace of it when standard input ends. That pipe is held by
# the process that wants the server, so it ends with that process however it dies, SIGKILL included.
#
#   environment    DIRECTORY  where everything lives; holds `password`, `roles.sql` and `settings`
#                  BIN        where initdb and postgres are
#   orders (in)    start PORT | signal NAME
#   reports (out)  initialised | failed, then for every start: started PID, gone
#
# Processes are only ever signalled by the id of a child that is known to live (the file `running` says so).

trap '' INT HUP PIPE
umask 077
cd "$DIRECTORY" || exit 1
exec 2>init.log

initialise() {
    "$BIN/initdb" --pgdata=data --no-sync --username=postgres --pwfile=password \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C >&2 &&
        cat settings >>data/postgresql.conf &&
        "$BIN/postgres" --single -D data postgres <roles.sql >/dev/null
}

# Is the server's parent, so that it can wait for its end while the main loop waits for orders.
serve() {
    "$BIN/postgres" -D data -p "$1" >>log 2>&1 &
    echo $! >running
    echo $! >born
    wait $!
    rm running
    echo gone
}

tell() {
    [ -e running ] && kill -s "$1" "$server"
}

if mkfifo born && initialise; then echo initialised; else echo failed; fi
rm -f password roles.sql

while read -r order argument; do
    case $order in
    start)
        serve "$argument" &
        read -r server <born
        echo "started $server"
        ;;
    signal) tell "$argument" ;;
    esac
done

# A server that somebody stopped with SIGSTOP has to be woken to obey.
tell QUIT && tell CONT
wait
cd / && rm -rf "$DIRECTORY"
