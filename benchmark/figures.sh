#!/usr/bin/env bash
# The literal commands of every drawn figure and table (a dream_*.png is a world model's dream.png): copy one, or run all of a size with
#     bash benchmark/figures.sh small          (CPU: Pong and Acrobot, whose world models and 36 demonstrations are shipped)
#     bash benchmark/figures.sh aime           (CPU: dm_control's Walker and Cheetah, and Pong without the expert's actions)
#     bash benchmark/figures.sh aime_first     (CPU: what AIME's smaller buffers said)
#     bash benchmark/figures.sh aime_paper     (AIME with the paper's lengths, not run)
#     bash benchmark/figures.sh cmil           (CPU: Franka Kitchen, two sub-tasks, by its sensors and from pixels)
#     bash benchmark/figures.sh paper          (GPUs: the paper's games, N^E and horizons)
# Every grid skips what is finished, so figures share cells, and a command that was interrupted continues when it is
# typed again. Results: benchmark/results/grid*.csv. Pictures and table: docs/; `pip install -r requirements-benchmark.txt`.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
small)
    # Figure 2: return, latent distance and action agreement through training
    python benchmark/run_grid.py --env-ids PongNoFrameskip-v4 --scripts ditto d_gail d_bc bc_pixels --num-expert-episodes 30 --seeds 1 2 3 --jobs 2 --options="--size small --threads 1" --script-options "bc_pixels: --updates 2000"
    python benchmark/plot.py --figure training --size small --env-ids PongNoFrameskip-v4 --num-expert-episodes 30 --out docs/training_Pong.png
    python benchmark/plot.py --figure training --csv benchmark/results/breakout.csv --env-ids BreakoutNoFrameskip-v4 --scripts ditto d_bc d_gail --num-expert-episodes 30 --variants gpu32 --out docs/training_Breakout.png
    # why DITTO is behind on Breakout, and the world model's error through training (its commands: docs/ditto.md)
    python benchmark/run_grid.py --env-ids BreakoutNoFrameskip-v4 --scripts ditto --num-expert-episodes 30 --seeds 1 2 --jobs 2 --results benchmark/results/breakout.csv --variants "gamma80: --gamma 0.8" "gamma50: --gamma 0.5" "h3: --horizon 3" --options="--size small --threads 1 --eval-every 1500"
    python benchmark/plot.py --figure variants --csv benchmark/results/breakout.csv --env-ids BreakoutNoFrameskip-v4 --scripts ditto --num-expert-episodes 30 --variants readme gpu32 baseline gamma80 gamma50 h3 full --out docs/ablation_Breakout.png
    python benchmark/plot.py --figure model --csv benchmark/results/gpu_breakout_world_model_metrics.csv --variants C32 B32 --out docs/moving_error_Breakout.png
    # Figure 3: final return against the number of expert episodes, and the table; on Acrobot from pixels too, whose
    # world model and 36 demonstrations are shipped as well
    python benchmark/run_grid.py --env-ids PongNoFrameskip-v4 --scripts ditto d_gail d_bc bc_pixels --num-expert-episodes 4 30 --seeds 1 2 3 --jobs 2 --options="--size small --threads 1" --script-options "bc_pixels: --updates 2000"
    python benchmark/run_grid.py --env-ids Acrobot-v1 --scripts d_bc ditto bc_pixels d_gail --num-expert-episodes 30 4 --seeds 1 2 3 --jobs 2 --options="--size small --threads 1 --eval-every 500 --quick-episodes 4 --updates 2000" --script-options "bc_pixels: --updates 1000 --eval-every 250 --dilation 1"
    python benchmark/run_grid.py --env-ids Acrobot-v1 --scripts d_bc ditto --num-expert-episodes 1 --seeds 1 2 3 --jobs 2 --options="--size small --threads 1 --eval-every 500 --quick-episodes 4 --updates 2000"
    python benchmark/plot.py --figure training --size small --env-ids Acrobot-v1 --num-expert-episodes 4 --out docs/training_Acrobot_4.png
    python benchmark/plot.py --figure episodes --size small --env-ids PongNoFrameskip-v4 Acrobot-v1 --out docs/episodes.png
    python benchmark/plot.py --figure table --size small --env-ids PongNoFrameskip-v4 Acrobot-v1 --out docs/table.md
    python benchmark/plot.py --figure training --size small --env-ids PongNoFrameskip-v4 --num-expert-episodes 4 --out docs/training_Pong_4.png
    python benchmark/plot.py --figure training --csv benchmark/results/boxing_ditto.csv --env-ids BoxingNoFrameskip-v4 --out docs/training_Boxing.png
    # Figure 4: horizon; the default has H = 5
    python benchmark/run_grid.py --env-ids PongNoFrameskip-v4 --scripts ditto --num-expert-episodes 30 --seeds 1 2 3 --jobs 2 --variants "default:" "h1: --horizon 1" "h15: --horizon 15" --options="--size small --threads 1"
    python benchmark/plot.py --figure horizon --size small --env-ids PongNoFrameskip-v4 --num-expert-episodes 30 --out docs/horizon_Pong.png
    # reward: Eq. 8 against the paper's ablations, and against comparing the whole latent (h, z)
    python benchmark/run_grid.py --env-ids PongNoFrameskip-v4 --scripts ditto --num-expert-episodes 30 --seeds 1 2 3 --jobs 2 --variants "default:" "l2: --reward l2" "cosine: --reward cosine" "full: --reward-latent full" --options="--size small --threads 1"
    python benchmark/plot.py --figure variants --size small --env-ids PongNoFrameskip-v4 --scripts ditto --num-expert-episodes 30 --variants default l2 cosine full --out docs/reward_Pong.png
    ;;
aime)
    # docs/aime.md: 1000 games of SAC, phase 1 once (--updates 0), then the cells; `pip install -r requirements-dmc.txt`
    python dmc.py --env-id walker-walk
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --updates 0 --run-dir runs/walk1000
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --updates 0 --model-updates 40000 --run-dir runs/walk1000long
    # (walker-walkmid-expert: games 620 to 719 of that buffer and its dataset.json, copied by hand as 0.npz to 99.npz)
    python dmc.py --env-id walker-stand --num-episodes 1000 --update-every 6 --target-entropy 0 --noise 0.5
    python aime.py --env-id walker-stand --body walker-stand-buffer --size small --updates 0 --run-dir runs/stand1000
    python aime.py --env-id walker-stand --body walker-stand-buffer --size small --updates 0 --model-updates 40000 --run-dir runs/stand1000long
    python benchmark/check_body.py --body walker-stand-buffer --demonstrations walker-walk-expert --csv benchmark/results/aime_check.csv
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --world-model runs/walk1000/world_model/checkpoint.pt" --variants "walk1000:" "walk1000kl: --objective kl" "walk1000rec: --objective reconstruction"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts bco --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer" --variants "walk1000:" "walk1000iidm: --method iidm"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-stand --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --world-model runs/walk1000/world_model/checkpoint.pt" --variants "walk1000:"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-stand --scripts bco --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer" --variants "walk1000:"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-stand-buffer --world-model runs/stand1000/world_model/checkpoint.pt" --variants "stand1000:" "stand1000mid: --demo walker-walkmid-expert"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 2 3 --options="--size small --threads 1 --body walker-stand-buffer --world-model runs/stand1000long/world_model/checkpoint.pt" --variants "stand1000m40:"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 2 --options="--size small --threads 1 --body walker-stand-buffer --world-model runs/stand1000long/world_model/checkpoint.pt" --variants "stand1000m40u20: --updates 20000"
    python benchmark/run_grid.py --num-expert-episodes 100 --jobs 2 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts bco --seeds 1 2 3 --options="--size small --threads 1 --body walker-stand-buffer" --variants "stand1000m40:" "stand1000mid: --demo walker-walkmid-expert"
    python benchmark/plot.py --figure lengths --csv benchmark/results/aime_cells.csv --env-ids walker-walk --num-expert-episodes 100 --variants stand1000 stand1000m40 stand1000m40u20 --out docs/lengths_walker_stand.png
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --world-model runs/walk1000/world_model/checkpoint.pt" --variants "walk1000u10: --updates 10000 --eval-every 2000"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --world-model runs/walk1000/world_model/checkpoint.pt" --variants "walk1000u20: --updates 20000"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --data-dir pretrained/walker --world-model pretrained/walker/world_model_walk40.pt" --variants "walk1000m40u20: --updates 20000"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-run --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --data-dir pretrained/walker --world-model pretrained/walker/world_model_walk40.pt" --variants "walk1000m40:"
    python benchmark/plot.py --figure lengths --csv benchmark/results/aime_cells.csv --env-ids walker-walk --num-expert-episodes 100 --variants walk1000 walk1000u20 walk1000m40u20 --out docs/lengths_walker_walk.png
    # running: as what is imitated, and as what the body knows, with two lengths of phase 1; and random actions
    python dmc.py --env-id walker-run
    python aime.py --env-id walker-run --body walker-run-buffer --size small --updates 0 --run-dir runs/run1000
    python aime.py --env-id walker-run --body walker-run-buffer --size small --updates 0 --model-updates 40000 --run-dir runs/run1000long
    python dmc.py --env-id walker-walk --agent random --num-episodes 1000
    python aime.py --env-id walker-walk --body walker-random --size small --updates 0 --run-dir runs/random1000
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-run-buffer --world-model runs/run1000/world_model/checkpoint.pt" --variants "run1000_m15:"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 2 --options="--size small --threads 1 --body walker-run-buffer --world-model runs/run1000long/world_model/checkpoint.pt" --variants "run1000m40:"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts bco --seeds 1 --options="--size small --threads 1 --body walker-run-buffer" --variants "run1000m40:"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-random --world-model runs/random1000/world_model/checkpoint.pt" --variants "random1000:"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts bco --seeds 1 --options="--size small --threads 1 --body walker-random" --variants "random1000:"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-run --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer --world-model runs/walk1000/world_model/checkpoint.pt" --variants "walk1000:"
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-run --scripts bco --seeds 1 --options="--size small --threads 1 --body walker-walk-buffer" --variants "walk1000:"
    # the paper's widths, and the small ones, for 10 000 updates of phase 1
    python aime.py --env-id walker-run --body walker-run-buffer --size small --threads 1 --deter 512 --stoch 128 --model-updates 10000 --updates 0 --run-dir runs/run1000wide10
    python aime.py --env-id walker-run --body walker-run-buffer --size small --threads 1 --model-updates 10000 --updates 0 --run-dir runs/run1000m10
    python benchmark/run_grid.py --num-expert-episodes 100 --results benchmark/results/aime_cells.csv --out runs/grid_cells --env-ids walker-walk --scripts aime --seeds 1 --options="--size small --threads 1 --body walker-run-buffer" --variants "run1000wide10: --deter 512 --stoch 128 --world-model runs/run1000wide10/world_model/checkpoint.pt" "run1000m10: --world-model runs/run1000m10/world_model/checkpoint.pt"
    # other settings and another body: mdp, pictures of every tenth game, Cheetah
    python aime.py --env-id walker-walk --body walker-walk-buffer --setting mdp --size small --updates 0 --run-dir runs/walk1000-mdp
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1" --variants "walk1000_mdp: --setting mdp --body walker-walk-buffer --world-model runs/walk1000-mdp/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1" --variants "walk1000_mdp: --setting mdp --body walker-walk-buffer"
    python benchmark/add_pictures.py --data walker-walk-buffer --every 10
    python benchmark/add_pictures.py --data walker-walk-expert --count 50
    python aime.py --env-id walker-walk --body walker-walk-buffer --setting visual --size small --num-expert-episodes 50 --batch-size 16 --model-updates 8000 --updates 0 --eval-episodes 0 --run-dir runs/walk-visual
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 50 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1 --setting visual --body walker-walk-buffer --batch-size 16 --updates 3500 --eval-every 1750 --quick-episodes 3 --eval-episodes 20" --variants "walk_visual: --world-model runs/walk-visual/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 50 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1 --setting visual --body walker-walk-buffer --eval-episodes 20" --variants "walk_visual: --min-epochs 5 --max-epochs 5"
    python dmc.py --env-id cheetah-run
    python aime.py --env-id cheetah-run --body cheetah-run-buffer --model-kl 0.0002 --size small --updates 0 --run-dir runs/cheetah1000
    python benchmark/run_grid.py --env-ids cheetah-run --scripts aime --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1" --variants "run1000: --body cheetah-run-buffer --world-model runs/cheetah1000/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids cheetah-run --scripts bco --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1" --variants "run1000: --body cheetah-run-buffer"
    # run -> run, by lpomdp and mdp (its demonstrator as the make of CPU has it)
    python benchmark/run_grid.py --env-ids walker-run --scripts aime --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1 --body walker-run-buffer --world-model runs/run1000long/world_model/checkpoint.pt" --variants "run1000m40:"
    python benchmark/run_grid.py --env-ids walker-run --scripts aime --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1 --body walker-run-buffer --data-dir pretrained/walker --world-model pretrained/walker/world_model_run.pt" --variants "run1000m40other:"
    python aime.py --env-id walker-run --body walker-run-buffer --setting mdp --size small --updates 0 --run-dir runs/run1000-mdp
    python benchmark/run_grid.py --env-ids walker-run --scripts aime --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1" --variants "run1000_mdp: --setting mdp --body walker-run-buffer --world-model runs/run1000-mdp/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-run --scripts bco --num-expert-episodes 100 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1" --variants "run1000_mdp: --setting mdp --body walker-run-buffer" "run1000m40: --body walker-run-buffer"
    # fewer demonstrations, with the model that is shipped
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 50 20 10 5 2 1 --seeds 1 --results benchmark/results/aime_cells.csv --out runs/grid_cells --options="--size small --threads 1 --body walker-stand-buffer --data-dir pretrained/walker --world-model pretrained/walker/world_model.pt" --variants "stand1000m40:"
    python benchmark/plot.py --figure episodes --csv benchmark/results/aime_cells.csv --env-ids walker-walk --scripts aime --variants stand1000m40 --out docs/episodes_walker.png
    python aime.py --env-id walker-walk --size small --body walker-stand-buffer --data-dir pretrained/walker --world-model pretrained/walker/world_model.pt --run-dir runs/readme_aime
    python benchmark/clip.py --run-dir runs/readme_aime --steps 120 --skip 0 --out docs/walker.gif
    python benchmark/plot.py --figure cells --csv benchmark/results/aime_cells.csv --num-expert-episodes 100 --variants stand1000m40 walk1000 run1000m40 run1000 random1000 walk1000_mdp run1000_mdp --out docs/cells.png
    # docs/aime_atari.md
    python benchmark/run_grid.py --env-ids PongNoFrameskip-v4 --scripts aime_atari --num-expert-episodes 4 30 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_atari.csv --options="--size small --threads 1"
    python benchmark/plot.py --figure training --csv benchmark/results/aime_atari.csv --num-expert-episodes 30 --out docs/training_aime_Pong.png
    ;;
aime_first)
    # docs/aime.md, what smaller buffers said; the data take the names of those above: begin with an empty data/dmc
    python dmc.py --env-id walker-stand --num-episodes 500 --update-every 5 --batch-size 128
    python dmc.py --env-id walker-walk --num-episodes 300 --update-every 1
    python aime.py --env-id walker-walk --body walker-stand-buffer --size small --updates 0
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --updates 0
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1" --variants "default: --body walker-stand-buffer --world-model runs/walker/world_model-small-lpomdp-walker-stand-buffer-1/checkpoint.pt" "walkbody: --body walker-walk-buffer --world-model runs/walker/world_model-small-lpomdp-walker-walk-buffer-1/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1" --variants "default: --body walker-stand-buffer" "walkbody: --body walker-walk-buffer" "oracle: --method oracle --body walker-stand-buffer" "iidm: --method iidm --body walker-stand-buffer"
    python benchmark/plot.py --figure training --csv benchmark/results/aime.csv --env-ids walker-walk --scripts aime --num-expert-episodes 100 --variants walkbody --out docs/training_walker.png
    # stand -> walk with a buffer that moves: three agents that act more at random while they stand
    python dmc.py --env-id walker-stand --name walker-stand-entropy --target-entropy 0 --num-episodes 400 --update-every 4 --batch-size 128 --num-demonstrations 1
    python dmc.py --env-id walker-stand --name walker-stand-shaken --target-entropy 0 --noise 0.7 --num-episodes 400 --update-every 4 --batch-size 128 --num-demonstrations 1
    python dmc.py --env-id walker-stand --name walker-stand-noise --noise 0.5 --num-episodes 400 --update-every 4 --batch-size 128 --num-demonstrations 1
    python aime.py --env-id walker-walk --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer --size small --updates 0
    python aime.py --env-id walker-walk --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer --size small --updates 0 --model-updates 24000 --run-dir runs/stand3long
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1 --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer" --variants "stand3: --world-model runs/walker/world_model-small-lpomdp-walker-stand-entropy-buffer+walker-stand-shaken-buffer+walker-stand-noise-buffer-1/checkpoint.pt" "stand3long: --world-model runs/stand3long/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1 --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer" --variants "stand3kl: --objective kl --world-model runs/walker/world_model-small-lpomdp-walker-stand-entropy-buffer+walker-stand-shaken-buffer+walker-stand-noise-buffer-1/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1 --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer" --variants "stand3:"
    python benchmark/check_body.py --body walker-stand-buffer --demonstrations walker-walk-expert --world-model runs/walker/world_model-small-lpomdp-walker-stand-buffer-1/checkpoint.pt --games 50 --csv benchmark/results/aime_check.csv
    python benchmark/check_body.py --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer --demonstrations walker-walk-expert --world-model runs/walker/world_model-small-lpomdp-walker-stand-entropy-buffer+walker-stand-shaken-buffer+walker-stand-noise-buffer-1/checkpoint.pt --games 50 --csv benchmark/results/aime_check.csv
    python benchmark/check_body.py --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer --demonstrations walker-walk-expert --world-model runs/stand3long/world_model/checkpoint.pt --csv benchmark/results/aime_check.csv
    python benchmark/check_body.py --body walker-walk-buffer --demonstrations walker-walk-expert --world-model runs/walker/world_model-small-lpomdp-walker-walk-buffer-1/checkpoint.pt --games 50 --csv benchmark/results/aime_check.csv
    python benchmark/check_body.py --body walker-walk-buffer --demonstrations walker-stand-expert --world-model runs/walker/world_model-small-lpomdp-walker-walk-buffer-1/checkpoint.pt --games 50 --csv benchmark/results/aime_check.csv
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 20 10 5 2 1 --seeds 1 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1 --body walker-stand-entropy-buffer,walker-stand-shaken-buffer,walker-stand-noise-buffer" --variants "stand3long: --world-model runs/stand3long/world_model/checkpoint.pt"
    # looked at and left
    python dmc.py --env-id walker-stand --name walker-stand-entropy2 --target-entropy 2 --num-episodes 400 --update-every 4 --batch-size 128 --num-demonstrations 1
    python dmc.py --env-id walker-run --num-episodes 400 --update-every 2 --batch-size 128 --num-demonstrations 1
    python benchmark/check_body.py --body walker-stand-entropy2-buffer --demonstrations walker-walk-expert --csv benchmark/results/aime_check.csv
    python benchmark/check_body.py --body walker-run-buffer --demonstrations walker-walk-expert --csv benchmark/results/aime_check.csv
    # walk -> stand
    python benchmark/run_grid.py --env-ids walker-stand --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1" --variants "walkbody: --body walker-walk-buffer --world-model runs/walker/world_model-small-lpomdp-walker-walk-buffer-1/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-stand --scripts bco --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime.csv --options="--size small --threads 1" --variants "walkbody: --body walker-walk-buffer" "oracle: --method oracle --body walker-stand-buffer"
    python benchmark/plot.py --figure training --csv benchmark/results/aime.csv --env-ids walker-walk --scripts aime --num-expert-episodes 100 --variants stand3long --out docs/training_walker_stand.png
    # the demonstrator of 726: walk -> walk, two lengths of phase 2 and of cloning
    python dmc.py --env-id walker-walk
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --updates 0 --run-dir runs/walk1000
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_walk1000.csv --options="--size small --threads 1 --body walker-walk-buffer --world-model runs/walk1000/world_model/checkpoint.pt" --variants "walk1000:" "walk1000long: --updates 15000 --eval-every 2500"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_walk1000.csv --options="--size small --threads 1 --body walker-walk-buffer" --variants "walk1000:" "oracle1000: --method oracle" "oracle1000long: --method oracle --min-epochs 100 --max-epochs 100"
    python benchmark/plot.py --figure training --csv benchmark/results/aime_walk1000.csv --env-ids walker-walk --scripts aime --num-expert-episodes 100 --variants walk1000 --out docs/training_walker_1000.png
    ;;
aime_paper)
    # docs/aime.md, not run: the paper's data, lengths and widths
    python dmc.py --env-id walker-walk
    python dmc.py --env-id walker-stand --target-entropy 0
    python dmc.py --env-id walker-run
    python dmc.py --env-id walker-walk --agent random --num-episodes 1000
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --updates 0 --model-updates 100000 --run-dir runs/long-walk
    python aime.py --env-id walker-walk --body walker-stand-buffer --size small --updates 0 --model-updates 100000 --run-dir runs/long-stand
    python aime.py --env-id walker-walk --body walker-run-buffer --size small --updates 0 --model-updates 100000 --run-dir runs/long-run
    python aime.py --env-id walker-walk --body walker-random --size small --updates 0 --model-updates 100000 --run-dir runs/long-random
    # length of phase 1 and of phase 2, walk -> walk and stand -> walk; then wider (512, 128)
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --updates 0 --run-dir runs/short-walk
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_long_walk.csv --out runs/grid_long_walk --options="--size small --threads 1 --updates 50000 --eval-every 2000 --body walker-walk-buffer" --variants "m15: --world-model runs/short-walk/world_model/checkpoint.pt" "m100: --world-model runs/long-walk/world_model/checkpoint.pt"
    python benchmark/plot.py --figure lengths --csv benchmark/results/aime_long_walk.csv --num-expert-episodes 100 --out docs/lengths_walker_walk.png
    python aime.py --env-id walker-walk --body walker-stand-buffer --size small --updates 0 --run-dir runs/short-stand
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_long_stand.csv --out runs/grid_long_stand --options="--size small --threads 1 --updates 50000 --eval-every 2000 --body walker-stand-buffer" --variants "m15: --world-model runs/short-stand/world_model/checkpoint.pt" "m100: --world-model runs/long-stand/world_model/checkpoint.pt"
    python benchmark/plot.py --figure lengths --csv benchmark/results/aime_long_stand.csv --num-expert-episodes 100 --out docs/lengths_walker_stand_long.png
    python aime.py --env-id walker-walk --body walker-walk-buffer --size small --deter 512 --stoch 128 --model-updates 100000 --updates 50000 --eval-every 2000 --run-dir runs/wide-walk
    # cells of the paper's table, lpomdp
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "walk: --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt" "stand: --body walker-stand-buffer --world-model runs/long-stand/world_model/checkpoint.pt" "run: --body walker-run-buffer --world-model runs/long-run/world_model/checkpoint.pt" "random: --body walker-random --world-model runs/long-random/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk: --body walker-walk-buffer" "stand: --body walker-stand-buffer" "run: --body walker-run-buffer" "random: --body walker-random"
    python benchmark/run_grid.py --env-ids walker-stand --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "walk: --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-stand --scripts bco --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk: --body walker-walk-buffer"
    python benchmark/run_grid.py --env-ids walker-run --scripts aime --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "walk: --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-run --scripts bco --num-expert-episodes 100 --seeds 1 2 3 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk: --body walker-walk-buffer"
    # mdp, visual (pictures are rendered while SAC plays) and Cheetah
    python aime.py --env-id walker-walk --body walker-walk-buffer --setting mdp --size small --updates 0 --model-updates 100000 --run-dir runs/long-walk-mdp
    python aime.py --env-id walker-walk --body walker-stand-buffer --setting mdp --size small --updates 0 --model-updates 100000 --run-dir runs/long-stand-mdp
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "walk_mdp: --setting mdp --body walker-walk-buffer --world-model runs/long-walk-mdp/world_model/checkpoint.pt" "stand_mdp: --setting mdp --body walker-stand-buffer --world-model runs/long-stand-mdp/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk_mdp: --setting mdp --body walker-walk-buffer" "stand_mdp: --setting mdp --body walker-stand-buffer"
    python dmc.py --env-id walker-walk --num-episodes 300 --pixels --data-dir data/dmc-visual
    python aime.py --env-id walker-walk --body walker-walk-buffer --setting visual --size small --updates 0 --run-dir runs/visual-walk
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk_visual: --setting visual --body walker-walk-buffer --world-model runs/visual-walk/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk_visual: --setting visual --body walker-walk-buffer"
    python dmc.py --env-id cheetah-run
    python aime.py --env-id cheetah-run --body cheetah-run-buffer --model-kl 0.0002 --size small --updates 0 --model-updates 100000 --run-dir runs/long-cheetah
    python benchmark/run_grid.py --env-ids cheetah-run --scripts aime --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "run: --body cheetah-run-buffer --world-model runs/long-cheetah/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids cheetah-run --scripts bco --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "run: --body cheetah-run-buffer"
    python benchmark/plot.py --figure cells --csv benchmark/results/aime_cells_long.csv --num-expert-episodes 100 --out docs/cells_long.png
    # ablations on walk -> walk: one term of Eq. 8 alone, an inverse model in latent space, IIDM; and fewer demonstrations
    python aime.py --env-id walker-walk --body walker-walk-buffer --idm --size small --updates 0 --model-updates 100000 --run-dir runs/long-walk-idm
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_ablation.csv --out runs/grid_ablation --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "elbo: --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt" "kl: --objective kl --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt" "reconstruction: --objective reconstruction --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt" "idm: --idm --body walker-walk-buffer --world-model runs/long-walk-idm/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 100 --seeds 1 --jobs 2 --results benchmark/results/aime_ablation.csv --out runs/grid_ablation --options="--size small --threads 1" --variants "bco0: --body walker-walk-buffer" "iidm: --method iidm --body walker-walk-buffer"
    python benchmark/plot.py --figure variants --csv benchmark/results/aime_ablation.csv --num-expert-episodes 100 --out docs/ablation_aime.png
    python benchmark/run_grid.py --env-ids walker-walk --scripts aime --num-expert-episodes 50 20 10 5 2 1 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1 --updates 50000 --eval-every 2000" --variants "walk: --body walker-walk-buffer --world-model runs/long-walk/world_model/checkpoint.pt"
    python benchmark/run_grid.py --env-ids walker-walk --scripts bco --num-expert-episodes 50 20 10 5 2 1 --seeds 1 --jobs 2 --results benchmark/results/aime_cells_long.csv --out runs/grid_cells_long --options="--size small --threads 1" --variants "walk: --body walker-walk-buffer"
    python benchmark/plot.py --figure episodes --csv benchmark/results/aime_cells_long.csv --env-ids walker-walk --variants walk --out docs/episodes_walker.png
    ;;
cmil)
    # docs/cmil.md; `pip install -r requirements-kitchen.txt`, and a folder of recorded kitchen actions for KITCHEN_DEMOS
    python control.py --source "${KITCHEN_DEMOS:?a folder with an action per file, such as the authors demonstrations}" --num-episodes 10
    python benchmark/run_grid.py --env-ids FrankaKitchen-v1 --scripts cmil --num-expert-episodes 10 --seeds 1 2 3 --jobs 2 --results benchmark/results/cmil.csv --options="--size small --obs state --max-steps 80 --threads 1 --env-steps 12000 --batch-size 8 --sigma 2.5 --pretrain 800 --eval-every 600 --quick-episodes 20 --eval-episodes 50" --variants "default:" "bc: --method bc" "no_conservatism: --method no-conservatism" "vmail: --method vmail"
    python benchmark/plot.py --figure interaction --csv benchmark/results/cmil.csv --env-ids FrankaKitchen-v1 --out docs/cmil_kitchen.png
    # from pixels, one seed
    python benchmark/run_grid.py --env-ids FrankaKitchen-v1 --scripts cmil --num-expert-episodes 10 --seeds 1 --jobs 2 --results benchmark/results/cmil_pixels.csv --out runs/grid_pixels --options="--size small --max-steps 80 --threads 1 --env-steps 4000 --batch-size 8 --sigma 2.5 --pretrain 800 --eval-every 550 --quick-episodes 10 --eval-episodes 20" --variants "default:" "bc: --method bc"
    ;;
paper)
    # With --jobs 4 --gpus 0 1 2 3 four GPUs of this machine take the cells in turn; on a cluster instead
    # --launcher submitit --slurm-partition NAME --gpus-per-job 1 --jobs 16
    # Figure 2
    python benchmark/run_grid.py --env-ids BeamRiderNoFrameskip-v4 --scripts ditto d_gail d_bc bc_pixels --num-expert-episodes 125 --seeds 1 2 3 4 5 --jobs 1 --options="--size paper --eval-consecutive 10"
    python benchmark/plot.py --figure training --size paper --env-ids BeamRiderNoFrameskip-v4 --num-expert-episodes 125 --out docs/training.png
    # Figure 3 and the table
    python benchmark/run_grid.py --env-ids BeamRiderNoFrameskip-v4 BreakoutNoFrameskip-v4 MsPacmanNoFrameskip-v4 QbertNoFrameskip-v4 SpaceInvadersNoFrameskip-v4 --scripts ditto d_gail d_bc bc_pixels --num-expert-episodes 4 8 15 30 60 125 250 500 1000 --seeds 1 2 3 4 5 --jobs 1 --options="--size paper --eval-consecutive 10"
    python benchmark/plot.py --figure episodes --size paper --env-ids BeamRiderNoFrameskip-v4 BreakoutNoFrameskip-v4 MsPacmanNoFrameskip-v4 QbertNoFrameskip-v4 SpaceInvadersNoFrameskip-v4 --out docs/episodes.png
    python benchmark/plot.py --figure table --size paper --env-ids BeamRiderNoFrameskip-v4 BreakoutNoFrameskip-v4 MsPacmanNoFrameskip-v4 QbertNoFrameskip-v4 SpaceInvadersNoFrameskip-v4 --out docs/table.md
    # Figure 4, left: continuous actions
    python benchmark/run_grid.py --env-ids BipedalWalker-v3 --scripts ditto d_gail d_bc bc_pixels --num-expert-episodes 4 8 15 30 60 125 --seeds 1 2 3 4 5 --jobs 1 --options="--size paper --eval-consecutive 10"
    python benchmark/plot.py --figure episodes --size paper --env-ids BipedalWalker-v3 --out docs/episodes_BipedalWalker.png
    # Figure 4, right: horizon; the default has H = 15
    python benchmark/run_grid.py --env-ids BreakoutNoFrameskip-v4 --scripts ditto --num-expert-episodes 125 --seeds 1 2 3 4 5 --jobs 1 --variants "default:" "h3: --horizon 3" "h9: --horizon 9" "h30: --horizon 30" --options="--size paper --eval-consecutive 10"
    python benchmark/plot.py --figure horizon --size paper --env-ids BreakoutNoFrameskip-v4 --num-expert-episodes 125 --out docs/horizon.png
    # reward
    python benchmark/run_grid.py --env-ids BreakoutNoFrameskip-v4 --scripts ditto --num-expert-episodes 125 --seeds 1 2 3 4 5 --jobs 1 --variants "default:" "l2: --reward l2" "cosine: --reward cosine" "full: --reward-latent full" --options="--size paper --eval-consecutive 10"
    python benchmark/plot.py --figure variants --size paper --env-ids BreakoutNoFrameskip-v4 --scripts ditto --num-expert-episodes 125 --variants default l2 cosine full --out docs/reward.png
    ;;
*)
    echo "Say which: bash benchmark/figures.sh small, aime, aime_first, aime_paper, cmil or paper." >&2
    exit 1
    ;;
esac
