#!/usr/bin/env bash
# Makes a CA, the service's certificate, a tokens file and two tokens in a new folder. Needs openssl and coalface-miner.
set -euo pipefail
umask 077

if (($# < 1)); then
  echo 'usage: secrets.sh NEW_FOLDER [DNS_NAME...]' >&2
  exit 2
fi
folder=$1
shift
mkdir "$folder"
cd "$folder"
names=(coalface-miner coalface-miner.coalface.svc localhost "$@")
days=365

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days "$days" \
  -subj '/CN=coalface CA' -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' \
  -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 \
  -subj '/CN=coalface-miner' -keyout tls.key -out tls.csr
alternative=$(printf ',DNS:%s' "${names[@]}")
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days "$days" \
  -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' \
    "${alternative#,}") -out tls.crt
rm tls.csr

python -m miner token trainer --role write --file tokens.yaml > trainer.token
python -m miner token operator --role admin --file tokens.yaml > operator.token
