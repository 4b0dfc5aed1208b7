#!/bin/sh
# openssl, but what it signs is of X.509 version 3 and says the name as a subjectAltName. The suite's scripts ask for
# neither, so that certificates are of version 1 with a common name only, which rustls refuses and no CA issues.
# The file is written by `cargo xtask pgbouncer-suite`.
openssl='@OPENSSL@'
if [ "$1" != ca ]; then
    exec "$openssl" "$@"
fi
request=
before=
for word in "$@"; do
    [ "$before" = -in ] && request=$word
    before=$word
done
name=$("$openssl" req -in "$request" -noout -subject -nameopt multiline | sed -n 's/^ *commonName *= //p')
printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:%s\n' "$name" >"$request.extensions"
exec "$openssl" "$@" -extfile "$request.extensions"
