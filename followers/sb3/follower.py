"""`SB3Follower`: any algorithm of Stable-Baselines3 or sb3-contrib as a follower."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import make_output_format
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from bocmdp_gym.arguments import parameters_of
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import BOCMDPError, OptionError, UnknownOptionError, UnsupportedError, suggest
from bocmdp_gym.hooks import context_observed
from bocmdp_gym.options import check_choice, check_count, check_flag, check_folder, check_regularization
from bocmdp_gym.saved_state import array_entry, count_entry, entry
from bocmdp_gym.validation import check_discount
from followers.base import Follower, Task
from followers.environments import AnyEnv, inspect_layers, make_single
from followers.generators import isolated_generators
from followers.policies import Policy
from followers.sb3.algorithms import (
    compares_returns,
    default_of,
    deterministic,
    find_algorithm,
    greedy_in_values,
    policy_name,
    remembers,
    set_regularization,
    settings_of,
    takes_discount,
    takes_discrete_only,
    takes_masks,
)
from followers.sb3.envs import DiscountedReturns, Watched, training_envs
from followers.sb3.episodes import MaskedSB3Policy, RecurrentSB3Policy
from followers.sb3.learner import ContinuousLog, Learner, Saved, Watch, as_callbacks, set_progress
from followers.sb3.masks import check_masked, check_unmasked, masks_of_states
from followers.sb3.normalization import Statistics, check_normalize, normalizer_of, normalizing
from followers.sb3.normalized import Normalized
from followers.sb3.policy import DiscreteSB3Policy, SB3Policy, decides_itself, masked_table, reader
from followers.sb3.replay import check_relabelling
from followers.sb3.saving import SavedInFolder
from followers.sb3.state import check_state, restore, state_of, statistics_in
from followers.sb3.views import View, check_observation_space, view_of

_RESERVED = {
    "env": "the environment comes from the oracle",
    "seed": "all randomness comes from the run's generator",
    "tensorboard_log": "use log_dir, which keeps one log across all outer iterations",
}
REPLAY = ("drop", "relabel")


class SB3Follower(SavedInFolder):
    """Trains an algorithm of Stable-Baselines3 on M_{x, xi} and answers with its policy.

    One learner per context: a network that cannot see xi would solve a mixture of contexts. Learners are kept and trained
    further whenever their context comes up again (``warm_start``). Each answer is a snapshot: later training leaves it alone.

    RecurrentPPO remembers the episode, and MaskablePPO asks the environment's ``action_masks()`` what it may do: their policies
    act along an episode (`Policy.begin`), and tell no probabilities; but for MaskablePPO where masks belong to the states of a
    tabular model (``action_mask``), which answers with a table. ARS adds up what an episode pays, so that is discounted.

    Schedules (``learning_rate``, ``clip_range``, the exploration of DQN) run over each response: from their beginning to their
    end in ``total_timesteps``, then from the beginning again. Or over a whole run (``schedule_timesteps``).

    Args:
        algorithm: a class, or its name ("PPO", "A2C", "DQN", "SAC", "TD3", "QRDQN", "SoftDQN", ...).
        total_timesteps: environment steps of each response, at least; on-policy algorithms finish the rollout begun.
        policy: the algorithm's first argument; its "MlpPolicy", or "MultiInputPolicy" for dictionaries of observations, if None.
        softmax_temperature: temperature t > 0 of softmax(Q/t), to answer with that instead of the best action alone; for
            algorithms that are greedy in Q-values (DQN, QRDQN).
        normalize: what is divided by its running standard deviation in training: "observation", "reward" or "both", as by
            `VecNormalize`. The statistics of observations are part of the answer. The leader's returns stay as they are.
        schedule_timesteps: training steps, of all learners together, over which schedules run once, to stay at their end after
            that: outer iterations times responses in each times ``total_timesteps``, for the whole run. None: over each
            response.
        warm_start: continue from the context's last response; else each response trains a new learner.
        replay: what happens to a replay buffer when x changes, whose rewards belong to the old x: "drop" it, and collect
            ``learning_starts`` steps again; or "relabel" its rewards, where the model has them and x moves nothing else.
        shared: one learner for all contexts, trained on their mixture; only where the context is observed.
        n_envs: copies of the environment to train on.
        make_env: makes a copy, wrapped as the oracle's environment is; ``copy.deepcopy`` if None.
        vec_env_class: how copies are run: a class, or a function of the list of their makers. One that wraps them in
            `VecNormalize`, ``lambda makers: VecNormalize(DummyVecEnv(makers), clip_obs=5.0)``, is ``normalize`` with arguments.
        callback: passed to every ``learn``: a `BaseCallback`, a list of them, or a function.
        log_dir: folder of one continuous log per learner (progress.csv and TensorBoard events), across outer iterations.
        log_interval: as in ``learn``; the algorithm's own if None.
        discount: gamma, taken from the environment; one that contradicts it is an error.
        settings: anything else goes to the algorithm: ``learning_rate``, ``policy_kwargs``, ``device``, ...

    Attributes:
        regularization: lambda where the algorithm maximises an entropy-regularised return: SoftDQN, and SAC, TQC, CrossQ with
            a fixed ``ent_coef``. None elsewhere, also for PPO and A2C, whose ``ent_coef`` is a term of the loss.
        training_steps: environment steps trained on so far, of all learners together.

    Raises:
        OptionError: an unknown algorithm or setting, a value out of range, or a budget of no steps.
        UnsupportedError: an algorithm that cannot take a discount, or rewards normalised where they must not be. When an oracle
            is made: an algorithm that cannot take the spaces, or asks for masks where there are none, ``shared`` without the
            context in the observation, buffers that cannot be relabelled, observations that cannot be normalised.
        DiscountError: when an oracle is made: a gamma other than the environment's.

    Warns:
        UserWarning: a callback stopped a response before ``total_timesteps``: ``metrics["follower_response_steps"]`` has how
            many it made.
    """

    def __init__(
        self,
        algorithm: str | type[BaseAlgorithm],
        total_timesteps: int,
        *,
        policy: Any = None,
        softmax_temperature: float | None = None,
        normalize: Normalized | None = None,
        schedule_timesteps: int | None = None,
        warm_start: bool = True,
        replay: str = "drop",
        shared: bool = False,
        n_envs: int | None = None,
        make_env: Callable[[], gym.Env[Any, Any]] | None = None,
        vec_env_class: Callable[[list[Any]], VecEnv] = DummyVecEnv,
        callback: Any = None,
        log_dir: str | Path | None = None,
        log_interval: int | None = None,
        discount: float | None = None,
        **settings: Any,
    ):
        self.algorithm = find_algorithm(algorithm)
        self.total_timesteps = check_count("total_timesteps", total_timesteps)
        self.warm_start, self.shared = check_flag("warm_start", warm_start), check_flag("shared", shared)
        self.replay = check_choice("replay", replay, REPLAY)
        self.settings, given = settings, settings.pop("gamma", discount)
        self.discount = None if given is None else check_discount(given)
        self._policy, self._callbacks = policy, as_callbacks(callback)
        self._schedule_timesteps = None if schedule_timesteps is None else check_count("schedule_timesteps", schedule_timesteps)
        self._log_interval = None if log_interval is None else check_count("log_interval", log_interval)
        self._n_envs = None if n_envs is None else check_count("n_envs", n_envs)
        self._make_env, self._vec_env_class = make_env, vec_env_class
        self._log_dir = None if log_dir is None else check_folder("log_dir", log_dir)
        self._temperature = None if softmax_temperature is None else check_regularization(softmax_temperature)
        self._check_settings()
        self.regularization = self._find_regularization()
        self.anneals = self.regularization is not None
        self._normalize = check_normalize(normalize, self.regularization, compares_returns(self.algorithm))
        self.markov = not (remembers(self.algorithm) or takes_masks(self.algorithm))
        self._masks_of_states = False
        self.greedy = deterministic(self.algorithm) and self._temperature is None
        self._envs: VecEnv | None = None
        self._logs: dict[str, ContinuousLog] = {}
        self.reset()

    # ------------------------------------------------------------------------------------------------------- checks

    def _check_settings(self) -> None:
        name = self.algorithm.__name__
        if self.settings.get("optimize_memory_usage") and not self._drops_time_limits():
            raise OptionError(
                "a buffer with optimize_memory_usage cannot tell time limits from ends; expected "
                "replay_buffer_kwargs={'handle_timeout_termination': False} besides, or a lower buffer_size instead."
            )
        known = settings_of(self.algorithm) - {"policy", "self", "gamma", "_init_setup_model"}
        for setting in self.settings:
            if setting in _RESERVED:
                raise OptionError(f"{setting} cannot be set: {_RESERVED[setting]}.")
            if setting not in known:
                classes = [kind for kind in type(self).__mro__ if issubclass(kind, SB3Follower)]
                named = [p for kind in classes for p in parameters_of(kind)]
                own = {p.name for p in named if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
                options = sorted((known | own) - set(_RESERVED))
                raise UnknownOptionError(
                    f"{type(self).__name__} with {name} has no option {setting!r}. {suggest(setting, options)}"
                )
        if self._temperature is not None and not greedy_in_values(self.algorithm):
            raise OptionError(f"softmax_temperature is for algorithms that are greedy in Q-values, which {name} is not.")
        if self.replay == "relabel" and self.shared:
            raise OptionError("a shared learner's buffer mixes contexts, so it cannot be relabelled; use replay='drop'.")
        buffer = self.settings.get("replay_buffer_class")
        if buffer is not None and issubclass(buffer, HerReplayBuffer):
            raise UnsupportedError("HerReplayBuffer makes up rewards of other goals than the leader's x; use another buffer.")
        starts = self.settings.get("learning_starts", default_of(self.algorithm, "learning_starts", 0))
        if self.total_timesteps <= starts:
            raise OptionError(
                f"total_timesteps is {self.total_timesteps} and {name} collects {starts} steps (learning_starts) before it "
                "learns; raise total_timesteps or lower learning_starts."
            )

    def _drops_time_limits(self) -> bool:
        return not (self.settings.get("replay_buffer_kwargs") or {}).get("handle_timeout_termination", True)

    def _find_regularization(self) -> float | None:
        if "regularization" in settings_of(self.algorithm):
            return check_regularization(self.settings.get("regularization"))
        coefficient = self.settings.get("ent_coef")
        fixed = isinstance(coefficient, (int, float)) and coefficient > 0
        return check_regularization(coefficient) if fixed and issubclass(self.algorithm, OffPolicyAlgorithm) else None

    def bind(self, env: AnyEnv, core: Any) -> None:
        """Refuse what cannot work, before anything runs (see the class)."""
        super().bind(env, core)
        if core.agents:
            raise UnsupportedError(
                f"{type(core.layer).__name__} is a game of {len(core.agents)} agents, and {type(self).__name__} is one learner; "
                f"use followers.IndependentLearners({type(self).__name__}(...)), which has one for each agent."
            )
        one, core = make_single(env)
        layers = inspect_layers(env, core, one)
        if takes_masks(self.algorithm):
            check_masked(one, self.algorithm.__name__)
            self.markov = self._masks_of_states = masks_of_states(one, core) and layers.showing is not None
        else:
            check_unmasked(core, layers, self.algorithm.__name__)
        discrete = isinstance(one.action_space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete))
        unreadable = isinstance(self._policy, type) and decides_itself(self._policy) and self._temperature is None
        readable = discrete and not unreadable and self.markov
        self.exposes_probabilities = type(self).exposes_probabilities if readable else False
        finite = isinstance(core.context_space, gym.spaces.Discrete)
        if self.shared and not context_observed(one):
            per_context = "one learner per context (shared=False)" if finite else "a new learner each time (warm_start=False)"
            raise UnsupportedError(
                "a shared learner has to see the context, and no layer of this environment shows it; wrap it in "
                f"bocmdp_gym.wrappers.ObserveContext, or use {per_context}."
            )
        if not self.shared and self.warm_start and not finite:
            raise UnsupportedError(
                f"contexts from {core.context_space} do not come up again, so a learner for each would never be used twice; use "
                "shared=True with the context observed, by bocmdp_gym.wrappers.ObserveContext, or warm_start=False."
            )
        if self.replay == "relabel" and issubclass(self.algorithm, OffPolicyAlgorithm):
            check_relabelling(core)
            if not layers.plain:
                raise UnsupportedError(
                    "wrappers change what the environment shows or pays, so its model cannot relabel rewards; use replay='drop'."
                )
        self._check_spaces(self._view_of(one).applied(one))
        self._layer(one, core)
        if isinstance(env, VectorEnv):
            self._make_envs(env, core)  # refuses what it cannot use

    def run_copies_by(self, vec_env_class: Callable[[list[Any]], VecEnv]) -> None:
        """Run copies by a class made for the environment, where several are wanted and none was asked for."""
        if self._vec_env_class is DummyVecEnv and self._n_envs not in (None, 1):
            self._vec_env_class = vec_env_class

    def _view_of(self, env: AnyEnv) -> View:
        return view_of(env, takes_discrete_only(self.algorithm))

    def _make_envs(self, env: AnyEnv, core: Any) -> tuple[Watched, bool]:
        """Training environments, and whether they are copies."""
        layer = self._layer(env, core)
        return training_envs(env, core, self._view_of(env), self._n_envs, self._make_env, self._vec_env_class, layer)

    def _layer(self, env: AnyEnv, core: Any) -> Callable[[VecEnv], VecEnv]:
        """What is put around training environments."""
        replays = issubclass(self.algorithm, OffPolicyAlgorithm)
        normalized = normalizing(self._normalize, self._view_of(env).seen, core.discount, replays)
        if compares_returns(self.algorithm):
            return lambda envs: normalized(DiscountedReturns(envs, core.discount))
        return normalized

    def _check_spaces(self, env: gym.Env[Any, Any]) -> None:
        """Have the algorithm look at the spaces, without building its networks."""
        name, space = self.algorithm.__name__, env.action_space
        check_observation_space(env.observation_space, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.algorithm(self._policy_for(env), env, _init_setup_model=False, **self._own_settings())  # type: ignore[call-arg]
        except BOCMDPError:
            raise  # it said what is wrong itself
        except (AssertionError, NotImplementedError, ValueError) as error:
            raise UnsupportedError(
                f"{name} cannot take this environment, with observations {env.observation_space} and actions {space}: {error}. "
                "DQN, QRDQN and SoftDQN take Discrete and MultiDiscrete actions, SAC, TD3, DDPG, TQC and CrossQ take Box, PPO, "
                "A2C, TRPO and RecurrentPPO take either, ARS Box and Discrete; CrossQ and ARS read no dictionaries."
            ) from error

    def _own_settings(self) -> dict[str, Any]:
        """The settings, with dictionaries of their own at any depth: algorithms add to them."""

        def own(value: Any) -> Any:
            return {name: own(part) for name, part in value.items()} if isinstance(value, dict) else value

        settings: dict[str, Any] = own(self.settings)
        return settings

    def _policy_for(self, env: Any) -> Any:
        if self._policy is not None:
            return self._policy
        return policy_name(self.algorithm, env.observation_space)

    # ----------------------------------------------------------------------------------------------------- responses

    @with_gradients  # agents learn, also for callers that have no use for gradients
    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """Train on the task and answer; ``metrics``: training steps so far.

        Raises:
            ObservationError: the environment showed or paid something that is not finite.
            ConvergenceError: the learner diverged.
        """
        first_seed, seed = (int(s) for s in rng.integers(2**31, size=2))
        with isolated_generators():
            learner = self._facing(task, first_seed)
            if self.regularization is not None:  # of this response: it may have been set since
                set_regularization(learner.model, self.regularization)
            learner.model.set_random_seed(seed)
            steps = self._train(learner, task.context)
            self.training_steps += steps
            metrics = {"follower_training_steps": float(self.training_steps)}
            if steps < self.total_timesteps:
                metrics["follower_response_steps"] = float(steps)
            return self._answer(learner, task, metrics)

    @with_gradients
    def present(self, task: Task, rng: np.random.Generator) -> Policy:
        """The policy of the task's learner as it is, without training: of a new one where there is none yet."""
        with isolated_generators():
            learner = self._facing(task, int(rng.integers(2**31)))
            return self._answer(learner, task, {"follower_training_steps": float(self.training_steps)})

    def _facing(self, task: Task, seed: int) -> Learner:
        """The task's learner, in the task's environment; ``seed``: of a new one."""
        envs = self._training_envs(task)
        learner = self._learner(task, envs, seed)
        learner.face(task, self.replay, self._view)
        return learner

    def _answer(self, learner: Learner, task: Task, metrics: dict[str, float]) -> Policy:
        """A snapshot of a learner's policy."""
        network, view = learner.model.policy, self._view.frozen(self._normalizer)
        if remembers(self.algorithm):
            return RecurrentSB3Policy(network, task.leader, task.context, metrics, view)
        if self._masks_of_states:
            table = masked_table(network, view, task.observations, task.arrays.available)
            return task.tabular_policy(table, None, **metrics)
        if takes_masks(self.algorithm):
            return MaskedSB3Policy(network, task.leader, task.context, metrics, view)
        read = reader(network, self._temperature)
        if read is None:
            return SB3Policy(network, task.leader, task.context, metrics, view)
        return DiscreteSB3Policy(network, task.leader, task.context, metrics, view, read, task.observations)

    def _training_envs(self, task: Task) -> VecEnv:
        env = task.env  # x and the context are set
        if self._envs is None:
            envs, self._copied = self._make_envs(env, task.core)
            self._normalizer = normalizer_of(envs, self.regularization)
            self._fresh = None if self._normalizer is None else Statistics(self._normalizer)
            self._view, self._envs = self._view_of(env), envs
        self._envs.env_method("set_leader", task.leader)
        self._envs.env_method("set_context", None if self.shared else task.context)
        return self._envs

    def _learner(self, task: Task, envs: VecEnv, seed: int) -> Learner:
        """The context's learner: the one that was trained before, or a new one."""
        key = None if self.shared or not self.warm_start else task.context
        if self.warm_start and key in self._learners:
            return self._learners[key]
        model = self._new_model(envs, task.discount, seed)
        statistics = deepcopy(self._fresh)
        learner = Learner(model, self._log(task.context), None, getattr(model, "learning_starts", 0), statistics)
        saved = self._saved.pop(key, None)
        if saved is not None:
            restore(model, saved.state)
            learner.leader = saved.leader
            if statistics is not None:
                statistics.load_state(statistics_in(saved.state))
        learner.log.continue_with(model)
        self._learners[key] = learner
        return learner

    def _new_model(self, envs: VecEnv, discount: float, seed: int) -> BaseAlgorithm:
        name = self.algorithm.__name__
        try:
            settings = self._own_settings() | ({"gamma": discount} if takes_discount(self.algorithm) else {})
            model = self.algorithm(self._policy_for(envs), envs, seed=seed, **settings)
        except BOCMDPError:
            raise
        except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
            raise OptionError(
                f"{name} cannot be made with these settings, for observations {envs.observation_space} and actions "
                f"{envs.action_space}: {error}"
            ) from error
        rollout = getattr(model, "n_steps", 0) * envs.num_envs
        ends = self._schedule_timesteps is None and self.total_timesteps <= rollout
        if isinstance(model, OnPolicyAlgorithm) and ends and model.lr_schedule(0.0) <= 0.0:
            raise OptionError(
                f"the learning rate falls to 0 within each response, and {name} updates once, at its end: it would learn "
                f"nothing. Raise total_timesteps ({self.total_timesteps}) to several rollouts of {rollout} steps."
            )
        return model

    def _train(self, learner: Learner, context: Any) -> int:
        """Train one response. Returns the steps it took."""
        model = learner.model
        before = model.num_timesteps
        options: Any = {} if self._log_interval is None else {"log_interval": self._log_interval}
        model._last_obs = None  # others have used the environment since: start a new episode
        begin, length = (
            (0, self.total_timesteps) if self._schedule_timesteps is None else (self.training_steps, self._schedule_timesteps)
        )
        set_progress(model, begin, length)
        watch = Watch(context)
        callback: Any = [watch, *self._callbacks] if self._callbacks else watch
        try:
            model.learn(self.total_timesteps, callback=callback, reset_num_timesteps=False, **options)
        except ValueError as error:
            watch.explain(error)
            raise
        watch.check_losses()
        watch.check_parameters()
        learner.log.steps = learner.log.offset + model.num_timesteps
        steps = model.num_timesteps - before
        if steps < self.total_timesteps:
            warnings.warn(
                f"a response of {type(model).__name__} in context {context} made {steps} of {self.total_timesteps} steps, as a "
                "callback stopped it; its policy is what was learnt by then.",
                UserWarning,
                stacklevel=4,
            )
        return steps

    def _log(self, context: Any) -> ContinuousLog:
        """The log of a context's learners: one for all of them, however many follow one another."""
        name = f"context_{context}" if isinstance(context, int) and not self.shared else "all_contexts"
        if name not in self._logs:
            steps, formats = self._saved_log_steps.get(name, 0), []
            if self._log_dir is not None:
                folder, suffix = str(self._log_dir / name), f"_from_{steps}" if steps else ""
                formats = [make_output_format(kind, folder, suffix) for kind in ("csv", "tensorboard")]
            self._logs[name] = ContinuousLog(formats, steps)
        return self._logs[name]

    # --------------------------------------------------------------------------------------------- between the runs

    def reset(self) -> None:
        """Forget all learners, and close their logs."""
        self.close()
        self._forget()

    def start_over(self) -> None:
        """Let the next response begin with new learners; logs and counts go on."""
        self._learners.clear()
        self._saved.clear()

    def _forget(self) -> None:
        self._learners: dict[Any, Learner] = {}
        self._saved: dict[Any, Saved] = {}
        self._saved_log_steps: dict[str, int] = {}
        self.training_steps = 0

    def copy(self, name: str | None = None) -> Follower:
        """As `Follower.copy`; logs of a named copy go into a folder of that name."""
        made = super().copy(name)
        assert isinstance(made, SB3Follower)
        if made._log_dir is not None and name is not None:
            made._log_dir = made._log_dir / name
        return made

    def close(self) -> None:
        """Close the logs, and the copies of the environment made for training."""
        for log in self._logs.values():
            log.close()
        if self._envs is not None and self._copied:
            self._envs.close()
        self._logs, self._envs = {}, None

    def state(self) -> dict[str, Any]:
        """Learners with their networks, optimisers and buffers, and where the logs are."""
        learners = {}
        for index, (key, learner) in enumerate(self._learners.items() if self.warm_start else ()):
            learners[index] = {"context": key, "leader": learner.leader, **state_of(learner.model, learner.statistics)}
        waiting = {
            len(learners) + i: {"context": k, "leader": s.leader, **s.state} for i, (k, s) in enumerate(self._saved.items())
        }
        return {
            "algorithm": self.algorithm.__name__,
            "training_steps": self.training_steps,
            "log_steps": self._saved_log_steps | {name: log.steps for name, log in self._logs.items()},
            "learners": learners | waiting,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`: equal settings and an equal generator then give equal answers, bit for bit.

        Logs that are open, and copies of the environment, stay: a state may be taken up again and again.

        Raises:
            OptionError: another algorithm's learners; or, at the next response, ones with other networks.
            DamagedError: entries are missing, or are not what they should be.
        """
        name = entry(state, "algorithm", str)
        if name != self.algorithm.__name__:
            raise OptionError(
                f"these are learners of {name} and this follower trains {self.algorithm.__name__}; load them with the settings "
                "they were saved with."
            )
        log_steps = entry(state, "log_steps", dict)
        steps = {log: count_entry(log_steps, log) for log in log_steps}
        saved: dict[Any, Saved] = {}
        for learner in entry(state, "learners", dict).values():
            context = entry(learner, "context", (int, type(None)))
            leader = None if entry(learner, "leader", (np.ndarray, type(None))) is None else array_entry(learner, "leader", (-1,))
            saved[context] = Saved(leader=leader, state=check_state(learner))
        training_steps = count_entry(state, "training_steps")
        self._forget()
        self.training_steps, self._saved_log_steps, self._saved = training_steps, steps, saved
